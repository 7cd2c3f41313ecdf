"""Weights from disk, and directories that are written completely or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from switchkd.files import replace_folder

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def has_weights(directory: Path) -> bool:
    """Whether the directory itself holds a model's weights, in one file or in shards."""
    return any((directory / f"{name}{index}").exists() for name in _WEIGHTS for index in ("", ".index.json"))


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of `model.safetensors`, its shards, or `pytorch_model.bin`, by name.

    A `.bin` is a pickle: it is weights for tensors only (`weights_only`), so nothing in it can run.

    Raises:
        ValueError: if there are no weights, a shard is missing, or a pickle holds anything but tensors.
    """
    for name in _WEIGHTS:
        whole, index = directory / name, directory / f"{name}.index.json"
        if whole.exists():
            return _read_file(whole)
        if index.exists():
            return _read_shards(index)
    raise ValueError(f"{directory} holds no weights: looked for {', '.join(_WEIGHTS)} and their index files")


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{file}: not a pickle of plain tensors, so it is not weights ({first}); save it as safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file}: expected a dictionary of tensors, found {type(tensors).__name__}")
    return dict(tensors)


def _read_shards(index: Path) -> dict[str, Tensor]:
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        file = index.parent / shard
        if Path(shard).name != shard or not file.is_file():
            raise ValueError(
                f"{index} names the shard {shard}, which is no file in its folder: fetch the checkpoint again"
            )
        tensors |= _read_file(file)
    if absent := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index} names {len(absent)} tensors that no shard holds, {absent[0]} first")
    return tensors


def tensor_names(directory: Path) -> list[str]:
    """The names in a directory's safetensors files, read from their headers alone."""
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            names += weights.keys()
    return names


@contextmanager
def complete_or_nothing(directory: Path) -> Iterator[Path]:
    """A folder to write into that becomes `directory` when the block ends, and vanishes if it raises.

    Raises:
        ValueError: if `directory` is there and not empty.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} already exists: choose another folder, or remove it")
    with replace_folder(directory) as folder:
        yield folder
