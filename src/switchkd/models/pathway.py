"""One VLM as a pathway: what it sees, and what it would say."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from switchkd.batch import Inputs, Media
from switchkd.models.families import family_of
from switchkd.models.families.family import Features
from switchkd.models.opening import CONFIG, WEIGHTS, check_weights, load_config, naming
from switchkd.models.packed_rows import packed_arguments
from switchkd.models.quantize import Quantization, bits_and_bytes, keep_gradients
from switchkd.models.refusals import check_loaded
from switchkd.models.run_folder import model_folder
from switchkd.signals import Head, Sizes


class Pathway(nn.Module):
    """Vision encoder V, projector P and language model L of one VLM.

    `see` is V(x). `say` is L(P(features), t) up to the final norm, at the answer positions; `head` is the output matrix. The features
    need not be the model's own: that is the visual switch.

    Raises:
        ValueError: for a family, vision encoder or language model that the project does not cover.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.family = family_of(model.config)
        self.family.prepare(model)
        self.model = model
        self._attention = self.attention

    def see(self, inputs: Inputs) -> Features | None:
        """V(x), what the projector receives of images and, behind them, of videos; None for inputs without any."""
        media = self.media(inputs)
        return None if media is None else self.family.see(self.model, media)

    def media(self, inputs: Inputs) -> Media | None:
        """What V looks at. Where no sample shows anything it is nothing, or, on several ranks, a blank image.

        The other ranks may have images: every rank must then run the same layers, or sharded ones wait for each other for ever.
        """
        if inputs.media or not _several_ranks():
            return inputs.shown
        return {name: tensor.to(inputs.tokens.device) for name, tensor in self.family.blank().items()}

    def say(self, features: Features | None, inputs: Inputs) -> Float[Tensor, "answers hidden"]:
        """L(P(features), t): the hidden state at every position whose next token is part of an answer.

        Rows are padded on the right and language models are causal, so that no answer sees padding: no mask is passed on, which would keep
        attention from its fastest kernels, but in families that say otherwise.
        """
        media = self.media(inputs)
        projected = None if features is None or media is None else self.family.project(self.model, features, media)
        own = projected if inputs.media else None
        with _without_effect(self.model.get_input_embeddings(), projected if own is None else None):
            outputs = self.model.model(
                mm_encoder_outputs=own,
                use_cache=False,
                **self._text(inputs),
            )
        hidden: Tensor = outputs.last_hidden_state
        return hidden.flatten(0, 1).index_select(0, inputs.predicts)

    @contextmanager
    def first_layers(self, count: int | None) -> Iterator[None]:
        """Have the language model end behind so many of its layers, inside a `with` block; no other is computed. None: behind all."""
        if count is None:
            yield
            return
        language = self._language
        layers = language.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        language.layers = layers[:count]
        try:
            yield
        finally:
            language.layers = layers

    def _text(self, inputs: Inputs) -> dict[str, Any]:
        """What the language model takes besides what it sees."""
        if inputs.offsets is not None:
            return packed_arguments(self, inputs)
        mask = inputs.is_text().long() if self.family.padding_mask else None
        more = self.family.language_inputs(inputs.shown, inputs.types)
        return {"input_ids": inputs.tokens, "attention_mask": mask, **more}

    def logits(self, hidden: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions rows"]:
        """What the head makes of hidden states, in float32 or wider."""
        return self.head.logits(hidden)

    @property
    def head(self) -> Head:
        """The output matrix, from hidden states to logits, with what the family puts behind it."""
        matrix = self.model.get_output_embeddings()
        return Head(matrix.weight, matrix.bias, self.family.softcap)

    @property
    def sizes(self) -> Sizes:
        """Width and heads of the language model, and the width of V(x)."""
        return self.family.model_sizes

    @property
    def _language(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.part("language")[0])

    @property
    def attention(self) -> str:
        """How the language model computes attention, by the name that transformers has for it."""
        return str(self._language.config._attn_implementation)

    def use_attention(self, name: str) -> None:
        """Let the language model compute attention in another way."""
        self._attention = name
        self._language.set_attn_implementation(name)

    def show_attention(self, shown: bool) -> None:
        """Let the language model keep its attention weights, which only eager attention does, or go back to what it was loaded with."""
        self._language.set_attn_implementation("eager" if shown else self._attention)

    def part(self, name: str) -> list[nn.Module]:
        """The modules of `vision`, `projector` or `language`."""
        return self.family.part(self.model, name)

    def part_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The parameters of `vision`, `projector` or `language`, by their names in the model."""
        return self.family.parameters(self.model, name)

    def train_only(self, parts: tuple[str, ...]) -> None:
        """Let the named parts learn and freeze the rest; vision parameters that feed nothing stay frozen."""
        if unknown := set(parts) - set(self.family.parts):
            raise ValueError(f"unknown parts {sorted(unknown)}; a model has {', '.join(self.family.parts)}")
        self.model.requires_grad_(False)
        for name in parts:
            parameters = self.part_parameters(name)
            adapters = {key: p for key, p in parameters.items() if ".lora_" in key}
            for parameter in (adapters or parameters).values():  # what adapters sit on stays frozen
                parameter.requires_grad_(True)
        for parameter in self.blind_parameters().values():
            parameter.requires_grad_(False)

    def blind_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable vision parameters that do not feed V(x): layers above the feature layer, say. Found by looking at a blank image.

        They never receive a gradient, so DDP would wait for them.
        """
        trainable = {name: p for name, p in self.part_parameters("vision").items() if p.requires_grad}
        if not trainable:
            return {}
        device = next(iter(trainable.values())).device
        blank = {name: tensor.to(device) for name, tensor in self.family.blank().items()}
        training = self.model.training
        self.model.eval()  # no dropout, no checkpointing
        with torch.enable_grad():
            feeding = _leaves(self.family.see(self.model, blank))
        self.model.train(training)
        return {name: p for name, p in trainable.items() if id(p) not in feeding}


def _several_ranks() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


@contextmanager
def _without_effect(embeddings: nn.Module, projected: Any) -> Iterator[None]:
    """Add 0 · `projected` to the embedded tokens: its parameters get a gradient of zero, and in the order of ranks that have images."""
    if projected is None:
        yield
        return
    nothing = 0 * torch.stack([tensor.sum() for tensor in _tensors(projected)]).sum()
    hook = embeddings.register_forward_hook(lambda module, inputs, output: output + nothing.to(output))
    try:
        yield
    finally:
        hook.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a model's output, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _leaves(output: Tensor) -> set[int]:
    """The ids of the leaves of the graph that made `output`."""
    leaves = set()
    known, pending = set(), [output.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):  # an AccumulateGrad
            leaves.add(id(leaf))
        pending += [parent for parent, _ in node.next_functions]
    return leaves


def load_pathway(
    path_or_model: str | Path | PreTrainedModel,
    *,
    dtype: str = "auto",
    attn_implementation: str = "auto",
    quantization: Quantization | None = None,
    compute_dtype: str | None = None,
    device: torch.device | None = None,
) -> Pathway:
    """A pathway from a checkpoint directory, a hub name or a model in memory.

    Args:
        path_or_model: what `AutoModelForImageTextToText.from_pretrained` takes, the folder of a run, or a model.
        dtype: of the weights when they are loaded: `auto` keeps the checkpoint's own.
        attn_implementation: `auto` lets transformers choose, which is SDPA where the model has it.
        quantization: of the language model's linear layers, with bitsandbytes.
        compute_dtype: that 4-bit weights are multiplied in; `dtype` if not given.
        device: where the weights go; the CPU if not given.

    Raises:
        ValueError: if the checkpoint is of a kind that cannot be used, lacks weights of its architecture, which transformers would draw
            at random, or its family is not supported, or the attention asked for is not installed.
    """
    if attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError(
            "attn_implementation is flash_attention_2, which needs a CUDA GPU and the package flash-attn: install it, or choose sdpa"
        )
    if isinstance(path_or_model, PreTrainedModel):
        return Pathway(path_or_model)
    name = model_folder(path_or_model)
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise ValueError(f"{name} is neither a checkpoint directory nor the name of a model on the Hugging Face hub")
    config = load_config(name)
    check_weights(name)
    extra: dict[str, Any] = {}
    if quantization is not None:
        own = dtype if dtype != "auto" else str(config.dtype or "float32").removeprefix("torch.")
        extra = {
            "quantization_config": bits_and_bytes(config, quantization, compute_dtype or own),
            "device_map": {"": device or torch.device("cpu")},
        }
    family_of(config)  # refused before its weights are read
    loaded: Any = naming(
        name,
        (CONFIG, *WEIGHTS, "generation_config.json"),
        lambda: AutoModelForImageTextToText.from_pretrained(
            name,
            dtype=dtype,
            attn_implementation=None if attn_implementation == "auto" else attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **extra,
        ),
    )
    model, info = loaded
    check_loaded(name, model.config.model_type, info)
    if quantization == "4bit":
        keep_gradients(model)
    return Pathway(model).to(device)
