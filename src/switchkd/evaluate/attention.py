"""Where a model looks while it answers: the attention of its answers to the visual tokens, as maps over the pictures."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from switchkd.batch import Inputs
from switchkd.models import Pathway
from switchkd.models.capture import Attention, capture
from switchkd.models.families import Features


@torch.no_grad()
def attention_maps(pathway: Pathway, inputs: Inputs, features: Features | None = None) -> list[Float[Tensor, "_ _"]]:
    """How much of its attention each answer pays to each visual token: one map [rows, columns] per picture, in the batch's order.

    The mean over all layers and heads of the language model and over the answer positions of the picture's sample (where the next token
    is part of an answer). A map sums to the share of attention that falls on its picture, at most 1.

    Args:
        pathway: the model that answers. For the maps its language model runs with eager attention, the only one that keeps weights.
        inputs: what this model reads.
        features: what it is shown instead of its own V(x). `teacher` with `student.see(inputs)` gives the maps of the visual switch.

    Raises:
        ValueError: if the visual tokens of the family are no grid, a sample's do not fill its pictures, or one with pictures has no answer.
    """
    depth = len(pathway.family.layers(pathway.model))
    layers = [Attention(layer / max(depth - 1, 1), "answers", "visual") for layer in range(depth)]
    sides, counts = grids(pathway, inputs), _visual_tokens(pathway, inputs)
    answered = torch.bincount(inputs.sample, minlength=len(counts)).tolist()
    for sample, (tokens, answers) in enumerate(zip(counts, answered, strict=True)):
        if tokens and not answers:
            raise ValueError(
                f"sample {sample} has a picture but no answer: attention is that of the answer's positions"
            )
    if not sides:
        return []
    features = pathway.see(inputs) if features is None else features
    with _eager(pathway), capture(pathway, features, inputs, frozenset(layers)) as captured:
        pathway.say(features, inputs)
    of_layers = [
        torch.cat([weights.float().mean(dim=(0, 1)) for weights in layer.of_samples(captured) if weights.shape[-1]])
        for layer in layers
    ]
    parts = torch.stack(of_layers).mean(dim=0).split([height * width for height, width in sides])
    return [part.unflatten(0, side) for part, side in zip(parts, sides, strict=True)]


def grids(pathway: Pathway, inputs: Inputs) -> list[tuple[int, int]]:
    """Rows and columns of visual tokens of each picture of `inputs`, as the language model receives them.

    Raises:
        ValueError: as `attention_maps`.
    """
    kind, tokens = pathway.family.model_type, pathway.family.geometry.tokens_per_image
    if tokens is None:
        raise ValueError(
            f"{kind} has no fixed grid of visual tokens per image, so its attention has no map: "
            "maps are drawn for families whose images all have as many tokens (LLaVA, PaliGemma, Gemma 3)"
        )
    side = isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{tokens} visual tokens per image make no square: the class token is among them")
    sides = []
    for sample, count in enumerate(_visual_tokens(pathway, inputs)):
        if count % tokens:
            raise ValueError(f"sample {sample} has {count} visual tokens, and a picture of {kind} has {tokens}")
        sides += [(side, side)] * (count // tokens)
    return sides


def _visual_tokens(pathway: Pathway, inputs: Inputs) -> list[int]:
    """How many each sample has."""
    return list(pathway.family.is_visual(inputs.tokens).sum(dim=1).tolist())


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
