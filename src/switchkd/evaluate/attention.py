"""Where a model looks while it answers: the attention of its answers to the visual tokens, as maps over the pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedModel

from switchkd.models import Pathway
from switchkd.models.families import Features
from switchkd.models.layers import repeated_layers
from switchkd.types import Batch, answer_positions


@torch.no_grad()
def attention_maps(pathway: Pathway, batch: Batch, features: Features | None = None) -> list[Float[Tensor, "_ _"]]:
    """How much of its attention each answer pays to each visual token: one map [rows, columns] per picture, in the batch's order.

    The mean over all layers and heads of the language model and over the answer positions of the picture's row (where the next token
    is part of an answer). A map sums to the share of attention that falls on its picture, at most 1.

    Args:
        pathway: the model that answers. For the maps its language model runs with eager attention, the only one that keeps weights.
        batch: as this model reads it (`batch["teacher"]` for the teacher of a pair that reads differently).
        features: what it is shown instead of its own V(x). `teacher` with `student.see(batch)` gives the maps of the visual switch.

    Raises:
        ValueError: if the visual tokens of the family are no grid, a row's do not fill its pictures, or a row with pictures has no answer.
    """
    sides, shown, answers = grids(pathway, batch), _visual_tokens(pathway, batch), answer_positions(batch["labels"])
    if silent := [row for row in range(len(shown)) if shown[row].any() and not answers[row].any()]:
        raise ValueError(f"row {silent[0]} has a picture but no answer: attention is that of the answer's positions")
    if not sides:
        return []
    layers = repeated_layers(pathway.part("language"))
    received: list[list[Tensor]] = []

    def keep(module: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        weights = output[1].float().mean(dim=1)  # over heads: [batch, queries, keys]
        received.append([w[a].mean(dim=0)[v] for w, a, v in zip(weights, answers, shown, strict=True) if v.any()])

    hooks = [layer.get_submodule("self_attn").register_forward_hook(keep) for layer in layers]
    try:
        with _eager(pathway):
            pathway.say(pathway.see(batch) if features is None else features, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if len(received) != len(layers):
        raise RuntimeError(f"{len(layers)} layers were listened to, and {len(received)} gave attention weights")
    mean = torch.stack([torch.cat(of_layer) for of_layer in received]).mean(dim=0)
    parts = mean.split([height * width for height, width in sides])
    return [part.unflatten(0, side) for part, side in zip(parts, sides, strict=True)]


def grids(pathway: Pathway, batch: Batch) -> list[tuple[int, int]]:
    """Rows and columns of visual tokens of each picture of `batch`, as the language model receives them.

    Raises:
        ValueError: as `attention_maps`.
    """
    config = pathway.model.config
    geometry = pathway.family.geometry(config)
    counted = "visual tokens per image"
    if counted not in geometry:
        raise ValueError(
            f"{config.model_type} has no fixed grid of visual tokens per image, so its attention has no map: "
            "maps are drawn for families whose images all have as many tokens (LLaVA, PaliGemma, Gemma 3)"
        )
    tokens = geometry[counted]
    side = isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} visual tokens per image make no square: the class token is among them")
    found = []
    for row, count in enumerate(_visual_tokens(pathway, batch).sum(dim=1).tolist()):
        if count % tokens:
            raise ValueError(f"row {row} has {count} visual tokens, and a picture of {config.model_type} has {tokens}")
        found += [(side, side)] * (count // tokens)
    return found


def _visual_tokens(pathway: Pathway, batch: Batch) -> Bool[Tensor, "batch sequence"]:
    return batch["input_ids"] == pathway.family.geometry(pathway.model.config)["image token id"]


@contextmanager
def _eager(pathway: Pathway) -> Iterator[None]:
    """The language model with eager attention and without dropout, for as long as this lasts."""
    model, language = pathway.model, pathway.part("language")[0]
    assert isinstance(language, PreTrainedModel)
    training, before = model.training, language.config._attn_implementation
    model.eval()  # dropout would be applied to the weights that are looked at
    language.set_attn_implementation("eager")
    try:
        yield
    finally:
        language.set_attn_implementation(before)
        model.train(training)
