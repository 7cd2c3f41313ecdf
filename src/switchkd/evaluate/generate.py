"""Batched greedy generation from a Hugging Face model: the same question always gets the same answer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from switchkd.data.errors import SampleError, UnequalVideosError
from switchkd.data.reader import LONGEST, Reader
from switchkd.models import load_pathway
from switchkd.models.opening import load_processor


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question. `truncated`: it had not finished after `max_new_tokens`."""

    text: str
    truncated: bool


def load(path: str | Path, *, dtype: str = "auto", device: str | None = None) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model and its processor, from a checkpoint directory or a hub name.

    Args:
        path: where it is.
        dtype: of the weights, as `bfloat16`; `auto` keeps the checkpoint's own.
        device: as `cuda:1`; by default the GPU if there is one.

    Raises:
        ValueError: there is no such folder or device, weights of the model are missing, or its family is not supported.
        OSError: there is no such model on the hub.
    """
    where = _device(device)
    if not Path(path).is_dir() and str(path).count("/") != 1:
        raise ValueError(f"{path}: no such folder, and not a name on the Hugging Face hub (OWNER/NAME)")
    model: Any = load_pathway(path, dtype=dtype).model  # Any: the hints of `to` are wrong
    processor = load_processor(path)
    _ = reader(model, processor).ids  # an id in use without an embedding ends it here
    return model.to(where), processor


def _device(name: str | None) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is none here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {name!a} cannot be used: {reason}. Try cpu, cuda or cuda:1") from error
    return device


def reader(model: PreTrainedModel, processor: ProcessorMixin) -> Reader:
    """What reads questions for a model, and refuses those with ids that it has no embedding for."""
    embeddings: Any = model.get_input_embeddings()
    return Reader(processor, rows=len(embeddings.weight))


def given_or_loaded(
    model: str | Path | PreTrainedModel,
    processor: ProcessorMixin | None,
    *,
    dtype: str = "auto",
    device: str | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin, str]:
    """A model that is given or loaded, the processor that is given or its own, and the model's name.

    Raises:
        ValueError: a model in memory without a processor, or with another dtype or device; and what `load` raises.
    """
    if isinstance(model, PreTrainedModel):
        if dtype != "auto" or device is not None:
            raise ValueError("dtype and device are of a model that is loaded; one in memory has its own")
        if processor is None:
            raise ValueError("a model in memory needs its `processor`")
        _ = reader(model, processor).ids
        return model, processor, model.config.name_or_path or type(model).__name__
    loaded, saved = load(model, dtype=dtype, device=device)
    return loaded, processor or saved, str(model)


#: All that plain greedy decoding takes over from a checkpoint: which tokens begin, end and fill up a text.
_KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")


def greedy(model: PreTrainedModel, max_new_tokens: int) -> GenerationConfig:
    """Plain greedy decoding: the checkpoint's own stop tokens apply, and nothing else that its generation config says."""
    kept = {name: getattr(model.generation_config, name) for name in _KEPT}
    return GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **kept)


def set_aside(model: PreTrainedModel) -> dict[str, Any]:
    """What the checkpoint's generation config says besides, as far as it differs from what transformers does by itself."""
    saved: GenerationConfig = model.generation_config
    said: dict[str, Any] = json.loads(saved.to_json_string(use_diff=False, ignore_metadata=True))
    # not in the defaults of transformers, because they are the model's: what its outputs hold is nothing that decoding reads
    neutral = saved._get_default_generation_params() | {"output_attentions": False, "output_hidden_states": False}
    return {
        name: value
        for name, value in said.items()
        if name not in _KEPT and not name.startswith("_") and value is not None and value != neutral.get(name)
    }


@dataclass(frozen=True)
class Listener:
    """Hears the only answer of a batch while it is decoded, and can stop it. `temperature` 0 is plain greedy decoding."""

    streamer: BaseStreamer
    stop: Event
    temperature: float = 0.0


class _Stopped(StoppingCriteria):
    def __init__(self, stop: Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Int[Tensor, "samples _"], scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


@torch.no_grad()  # and not in inference mode: tensors that a model keeps from it could not be trained with
def answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: list[dict[str, Any]],
    *,
    max_new_tokens: int,
    listener: Listener | None = None,
    read: Reader | None = None,
    choose: LogitsProcessorList | None = None,
) -> list[Answer]:
    """One answer to each sample, whose last message is the user's. One batch.

    Args:
        model: what answers.
        processor: the model's.
        samples: the questions.
        max_new_tokens: an answer is cut after so many.
        listener: of a single one.
        read: what reads the samples, where it is known.
        choose: changes the scores before the largest is chosen.

    Raises:
        ValueError: a sample that cannot be asked, or a model and a processor without a token that ends an answer.
        FloatingPointError: a logit that an answer was chosen by is not finite.
    """
    reads = read or reader(model, processor)
    try:
        prompts = reads.prompts(samples)
    except UnequalVideosError:
        if choose is not None:  # what chooses is made for this batch
            raise
        each = [answers(model, processor, [one], max_new_tokens=max_new_tokens, read=reads) for one in samples]
        return [answer for (answer,) in each]
    batch = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() and name.startswith("pixel") else None)
        for name, tensor in prompts.items()
    }
    config = greedy(model, max_new_tokens)
    streaming: dict[str, Any] = {}
    if listener is not None:
        config.max_new_tokens = min(max_new_tokens, _room(model, batch["input_ids"].shape[1]))
        if listener.temperature:
            config.update(do_sample=True, temperature=float(listener.temperature), top_k=0)
        streaming = {
            "streamer": listener.streamer,
            "stopping_criteria": StoppingCriteriaList([_Stopped(listener.stop)]),
        }
    tokenizer: Any = processor.tokenizer
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.eos_token_id is None:
        raise ValueError(
            "neither the model's generation config nor the tokenizer names an eos token: answers never end"
        )
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    if config.pad_token_id is None:
        config.pad_token_id = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    logits = _FiniteLogits()
    with _decoding_by(config, model):
        generate: Any = model.generate
        sequences = generate(
            **batch,
            generation_config=config,
            logits_processor=LogitsProcessorList([logits, *(choose or [])]),
            **streaming,
        )
    new = sequences[:, batch["input_ids"].shape[1] :]
    if len(new) != len(samples):
        raise RuntimeError(f"{len(samples)} questions were asked and {len(new)} answers came back")
    is_end = torch.isin(new, torch.tensor(ends, device=new.device))
    lengths = torch.where(is_end.any(dim=1), is_end.int().argmax(dim=1) + 1, new.shape[1]).tolist()
    logits.check(lengths, [sample["id"] for sample in samples])
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [Answer(text.strip(), not done) for text, done in zip(texts, is_end.any(dim=1).tolist(), strict=True)]


def _room(model: PreTrainedModel, tokens: int) -> int:
    """How many positions the language model has behind so many tokens.

    Raises:
        SampleError: none.
    """
    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return LONGEST
    if tokens >= positions:
        raise SampleError(
            f"the conversation has {tokens:,} tokens, its pictures included, and the model has {positions:,} positions: begin a new "
            "conversation, or ask a shorter question about fewer or smaller pictures"
        )
    return positions - tokens


def reading_problems(
    model: PreTrainedModel, processor: ProcessorMixin, samples: list[dict[str, Any]]
) -> list[str | None]:
    """Why each of the samples cannot be asked, in words; None for those that can."""
    reads = reader(model, processor)
    problems: list[str | None] = []
    for sample in samples:
        try:
            reads.prompts([sample])
            problems.append(None)
        except SampleError as error:
            problems.append(str(error))
    return problems


@contextmanager
def _decoding_by(config: GenerationConfig, model: PreTrainedModel) -> Iterator[None]:
    """`config` in the place of the model's own, from which `generate` would take over all that is left unset; no dropout."""
    saved, was_training = model.generation_config, model.training
    model.generation_config = config
    model.eval()
    try:
        yield
    finally:
        model.generation_config = saved
        model.train(was_training)


class _FiniteLogits(LogitsProcessor):
    """Notes at which steps the logits of a sample are not finite: the largest of them is then no answer."""

    def __init__(self) -> None:
        self._finite: list[Bool[Tensor, " samples"]] = []

    def __call__(
        self, input_ids: Int[Tensor, "samples _"], scores: Float[Tensor, "samples vocab"]
    ) -> Float[Tensor, "samples vocab"]:
        self._finite.append(scores.isfinite().all(dim=-1))
        return scores

    def check(self, lengths: list[int], ids: list[str]) -> None:
        """Raise FloatingPointError for the first sample whose answer, of so many tokens, met one that is not."""
        steps = torch.stack(self._finite, dim=1).tolist()
        for finite, length, name in zip(steps, lengths, ids, strict=True):
            if not all(finite[:length]):
                raise FloatingPointError(
                    f"sample {name!a}: the logits of token {finite.index(False) + 1} of the answer are not finite (NaN or infinity), so "
                    "there is no answer: weights of the model are not finite, or its numbers overflow in "
                    "this precision. Look at its weights, or choose an earlier checkpoint"
                )
