"""Batched greedy generation from a Hugging Face model: the same question always gets the same answer."""

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from switchkd.console import progress
from switchkd.data.reader import Reader
from switchkd.models import load_pathway
from switchkd.models.refusals import load_processor


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question. `truncated`: it had not finished after `max_new_tokens`."""

    text: str
    truncated: bool


def load(path: str | Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model and its processor, from a checkpoint directory or a hub name, on the GPU if there is one.

    Raises:
        ValueError: there is no such folder, weights of the model are missing, or its family is not supported.
        OSError: there is no such model on the hub.
    """
    if not Path(path).is_dir() and str(path).count("/") != 1:
        raise ValueError(f"{path}: no such folder, and not a name on the Hugging Face hub (OWNER/NAME)")
    model: Any = load_pathway(path).model  # Any: the hints of `to` are wrong
    processor = load_processor(path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def given_or_loaded(
    model: str | Path | PreTrainedModel, processor: ProcessorMixin | None
) -> tuple[PreTrainedModel, ProcessorMixin, str]:
    """A model that is given or loaded, the processor that is given or its own, and the model's name.

    Raises:
        ValueError: a model in memory without a processor; and what `load` raises.
    """
    if isinstance(model, PreTrainedModel):
        if processor is None:
            raise ValueError("a model in memory needs its `processor`")
        return model, processor, model.config.name_or_path or type(model).__name__
    loaded, saved = load(model)
    return loaded, processor or saved, str(model)


def greedy(model: PreTrainedModel, max_new_tokens: int) -> GenerationConfig:
    """Plain greedy decoding. A checkpoint's own sampling, beams and penalties do not apply; its stop tokens do."""
    saved = model.generation_config
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        # Their neutral values: generate() takes over what is left unset from the checkpoint.
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        eos_token_id=saved.eos_token_id,
        pad_token_id=saved.pad_token_id,
        bos_token_id=saved.bos_token_id,
    )


@torch.inference_mode()
def answers(
    model: PreTrainedModel, processor: ProcessorMixin, samples: list[dict[str, Any]], *, max_new_tokens: int
) -> list[Answer]:
    """One answer to each sample, whose last message is the user's. One batch.

    Raises:
        ValueError: a sample that cannot be asked, or a model and a processor without a token that ends an answer.
    """
    batch = {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in Reader(processor).prompts(samples).items()
    }
    config = greedy(model, max_new_tokens)
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
    was_training = model.training
    model.eval()
    try:
        generate: Any = model.generate
        sequences = generate(**batch, generation_config=config)
    finally:
        model.train(was_training)
    new = sequences[:, batch["input_ids"].shape[1] :]
    if len(new) != len(samples):
        raise RuntimeError(f"{len(samples)} questions were asked and {len(new)} answers came back")
    finished = torch.isin(new, torch.tensor(ends, device=new.device)).any(dim=1)
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    return [Answer(text.strip(), not done) for text, done in zip(texts, finished.tolist(), strict=True)]


def with_progress(batches: Iterable[Any], what: str) -> Iterator[Any]:
    """Yield `batches`, and show on stderr how many are done."""
    assert isinstance(batches, Sized)
    return progress(batches, what, len(batches))
