"""The head of a teacher without the teacher: all that is needed of its weights where a cache has what it says."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from switchkd.models.families import family_of
from switchkd.models.opening import WEIGHTS, load_config, naming
from switchkd.models.refusals import read_object
from switchkd.models.run_folder import model_folder
from switchkd.signals import Head, Sizes

#: How the names of the output matrix end, and of the one that stands in for it where the two are tied.
_HEAD, _EMBEDDINGS = "lm_head", "embed_tokens"


class TeacherHead(nn.Module):
    """The family and the head of a model, and no other weight.

    Raises:
        ValueError: for a family that the project does not cover.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, config: PretrainedConfig, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.family = family_of(config)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def head(self) -> Head:
        """The output matrix, from hidden states to logits, with what the family puts behind it."""
        return Head(self.weight, self.bias, self.family.softcap)

    @property
    def sizes(self) -> Sizes:
        """Width and heads of the language model."""
        return self.family.model_sizes


def load_head(path: str | Path, *, dtype: str = "auto", device: torch.device | None = None) -> TeacherHead:
    """The head of a checkpoint directory, a run or a name on the hub: no other tensor is read.

    Raises:
        ValueError: for a checkpoint that cannot be used, or in whose files the head cannot be found.
        OSError: for a name that the hub does not have.
    """
    name = model_folder(path)
    config = load_config(name)
    tensors = naming(name, WEIGHTS, lambda: _tensors(name, tied=bool(config.to_dict().get("tie_word_embeddings"))))
    weight, bias = tensors
    family = family_of(config)
    expected = [family.geometry.vocabulary_rows, family.model_sizes.width]
    if list(weight.shape) != expected:
        raise ValueError(
            f"{name}: the head has the shape {list(weight.shape)} in the weights, and {expected} by config.json: they belong to different "
            "models. Take both from one place"
        )
    wanted: Any = (config.dtype or weight.dtype) if dtype == "auto" else getattr(torch, dtype)
    return TeacherHead(config, weight.to(wanted), None if bias is None else bias.to(wanted)).to(device)


def _tensors(name: str, *, tied: bool) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the head, from the files that hold them."""
    files = _files(name)
    weight = _ending(files, f"{_HEAD}.weight") or (_ending(files, f"{_EMBEDDINGS}.weight") if tied else None)
    if weight is None:
        raise ValueError(f"the weights hold no {_HEAD}.weight, and config.json does not tie it to the embeddings")
    bias = _ending(files, f"{_HEAD}.bias")
    return _read(name, files, weight), None if bias is None else _read(name, files, bias)


def _files(name: str) -> dict[str, str]:
    """Tensor → the file that holds it."""
    whole, index = WEIGHTS
    listed = cached_file(name, index, _raise_exceptions_for_missing_entries=False)
    if listed is not None:
        return dict(read_object(Path(listed))["weight_map"])
    with safe_open(_place(name, whole), framework="pt") as opened:
        return dict.fromkeys(opened.keys(), whole)


def _ending(files: dict[str, str], end: str) -> str | None:
    """The one tensor whose name ends so."""
    found = [tensor for tensor in files if tensor == end or tensor.endswith(f".{end}")]
    if len(found) > 1:
        raise ValueError(f"{len(found)} tensors could be its head: {', '.join(sorted(found))}")
    return found[0] if found else None


def _read(name: str, files: dict[str, str], tensor: str) -> Tensor:
    with safe_open(_place(name, files[tensor]), framework="pt") as opened:
        read: Tensor = opened.get_tensor(tensor)
        return read


def _place(name: str, file: str) -> str:
    place = cached_file(name, file)
    assert place is not None, "what is missing is an error"
    return str(place)
