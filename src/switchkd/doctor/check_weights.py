"""Weights that are no numbers, or that were never written, train and save without a word."""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.models.finite import describe, not_finite


def weights(examined: Examined) -> Iterator[Finding]:
    """All weights of every model are finite, also those that no row here uses."""
    pair = examined.context.pair
    recipe = examined.context.run.recipe
    models: list[tuple[str, nn.Module, str]] = [
        ("student", pair.student.model, recipe.student.path),
        *_teacher(examined),
    ]
    models += [(name, module, "this run") for name, module in pair.auxiliary_modules.items() if module is not None]
    for name, module, path in models:
        tensors = dict(module.state_dict())
        if bad := not_finite(tensors):
            detail = f"{describe(tensors, bad)}. They are {path}'s: get its files again, or an earlier checkpoint"
            yield Finding("failed", f"{name}'s weights", detail)
        elif name == "teacher" and (empty := _zeros(tensors)):
            detail = f"{len(empty)} of {len(tensors)} tensors are nothing but zeros, {empty[0]} first: are {path}'s files whole?"
            yield Finding("warning", f"{name}'s weights", detail)
        else:
            kinds = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}))
            yield Finding("ok", f"{name}'s weights", f"{len(tensors)} tensors ({kinds}) are finite")


def _teacher(examined: Examined) -> list[tuple[str, nn.Module, str]]:
    teacher = examined.context.pair.teacher
    given = examined.context.stage.teacher
    return [] if teacher is None or given is None else [("teacher", teacher.model, given.path)]


def _zeros(tensors: Mapping[str, Tensor]) -> list[str]:
    """Matrices of zeros; vectors of zeros are the biases of many models."""
    return [name for name, tensor in tensors.items() if tensor.ndim > 1 and tensor.numel() and not tensor.any()]
