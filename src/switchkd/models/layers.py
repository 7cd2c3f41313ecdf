"""The repeated layers of a model, and what can be done to all of them."""

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def repeated_layers(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The transformer layers inside `modules`.

    Raises:
        ValueError: if there is none.
    """
    modules = list(modules)
    layers: list[nn.Module] = [
        m for part in modules for m in part.modules() if isinstance(m, GradientCheckpointingLayer)
    ]
    if not layers:
        names = ", ".join(type(module).__name__ for module in modules)
        raise ValueError(
            f"{names} has no layers of transformers' GradientCheckpointingLayer: activations cannot be recomputed in it"
        )
    return layers


def recompute(modules: Iterable[nn.Module]) -> None:
    """Let every layer keep its input only and run a second time in the backward pass.

    In training and in eval mode alike, unlike transformers' own switch: the visual switch is differentiated through a teacher in eval
    mode. Where no gradient is recorded, nothing changes.
    """
    for layer in repeated_layers(modules):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(modules: Iterable[nn.Module], *, backend: str) -> None:
    """Compile every layer by itself: one kind of layer is compiled once, whatever the depth, and what is between them stays Python."""
    import torch._dynamo  # a second that only this needs

    # Layers of all kinds share one frame of transformers, compiled for each kind, with and without gradients, and for varying lengths
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for layer in repeated_layers(modules):
        layer.compile(backend=backend)
