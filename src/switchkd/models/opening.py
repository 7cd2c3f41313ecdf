"""Opening the files of a checkpoint. What cannot be read is a ValueError that names the file and the reason, whatever its reader raises."""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    ProcessorMixin,
)

from switchkd import rendering
from switchkd.models.families import FAMILIES, family_of
from switchkd.models.refusals import read_object, refuse_other_tensors, refuse_unreadable, refuse_unusable
from switchkd.models.run_folder import model_folder

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_IMAGES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
#: Files of a checkpoint that are JSON objects, as far as they are there.
_OBJECTS = (
    CONFIG, "generation_config.json", *_TOKENIZER, *_IMAGES, "chat_template.json", "vocab.json", "model.safetensors.index.json",
)  # fmt: skip
#: Not the checkpoint's fault.
_OTHER_CAUSES = (MemoryError, torch.OutOfMemoryError, ImportError)
_T = TypeVar("_T")


def load_config(path: str | Path) -> PretrainedConfig:
    """The config of a checkpoint directory, a run or a name on the hub; of a family that is known, every size in it can be read.

    Raises:
        ValueError: for a checkpoint that cannot be used, files that are broken, and attention code that would be downloaded.
        OSError: for a name that the hub does not have.
    """
    path = model_folder(path)
    refuse_unusable(path)
    check_files(path)
    config: PretrainedConfig = naming(
        path, (CONFIG,), lambda: AutoConfig.from_pretrained(path, trust_remote_code=False)
    )
    for name, value in _attention_of(config):
        _refuse_kernel(Path(path) / CONFIG, name, value)
    if config.model_type in FAMILIES:

        def sizes() -> object:
            family = family_of(config)
            return family.geometry, family.model_sizes, family.positions, family.blank()

        naming(path, (CONFIG,), sizes)
    return config


def load_processor(path: str | Path) -> ProcessorMixin:
    """The processor of a checkpoint directory, a run or a name on the hub, with a tokenizer and an image processor.

    Raises:
        ValueError: for a checkpoint that cannot be used or lacks a part of its processor; for files that are broken, naming those of
            the part that cannot be opened.
        OSError: for a name that the hub does not have.
    """
    path = model_folder(path)
    refuse_unreadable(path)
    check_files(path)
    try:
        processor = cast(Any, AutoProcessor.from_pretrained(path, trust_remote_code=False))
    except _OTHER_CAUSES:
        raise
    except Exception as error:
        naming(path, _TOKENIZER, lambda: AutoTokenizer.from_pretrained(path, trust_remote_code=False))
        naming(path, _IMAGES, lambda: AutoImageProcessor.from_pretrained(path, trust_remote_code=False))
        if isinstance(error, OSError) and not Path(path).is_dir():
            raise
        raise _broken(path, (*_IMAGES, *_TOKENIZER), error) from error
    parts = ("tokenizer", "image_processor")
    lacking = [part for part in parts if getattr(processor, part, None) is None]
    if not isinstance(processor, ProcessorMixin) or lacking:
        raise ValueError(
            f"{path} has no processor for text and images: what can be opened is a {type(processor).__name__}. Copy the files of its "
            f"processor from where the model comes from ({', '.join(_IMAGES[:2])}, {', '.join(_TOKENIZER[:2])})"
        )
    for owner in (processor, processor.tokenizer):
        _check_template(path, owner.chat_template)
    return processor


def check_files(path: str | Path) -> None:
    """Raise ValueError where a file of a checkpoint directory is no JSON object, or asks for attention code from the hub."""
    folder = Path(path)
    for name in _OBJECTS if folder.is_dir() else ():
        file = folder / name
        if not file.is_file():
            continue
        if name == CONFIG:
            for key, value in _attention_entries(read_object(file)):
                _refuse_kernel(file, key, value)
        else:
            found = file.stat()
            _check_object(file, found.st_size, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=256)
def _check_object(file: Path, size: int, changed: int, inode: int) -> None:
    """`read_object` of a file that has not been read before, or not in this state: a vocabulary takes half a second to parse."""
    read_object(file)


def check_weights(path: str | Path) -> None:
    """Raise ValueError where the tensors of a checkpoint directory are not those of its config; headers are read, and no weight."""
    name = model_folder(path)
    naming(name, (CONFIG, *WEIGHTS), lambda: refuse_other_tensors(name))


def naming(path: str | Path, files: tuple[str, ...], read: Callable[[], _T]) -> _T:
    """What `read` gives; whatever it raises names the files of a checkpoint that it reads.

    Raises:
        ValueError: with the reason.
        OSError: for a name that the hub does not have.
    """
    try:
        return read()
    except _OTHER_CAUSES:
        raise
    except Exception as error:
        named = isinstance(error, ValueError) and str(error).startswith(str(path))
        if named or (isinstance(error, OSError) and not Path(path).is_dir()):
            raise
        raise _broken(path, files, error) from error


def _broken(path: str | Path, files: tuple[str, ...], error: Exception) -> ValueError:
    there = [name for name in files if (Path(path) / name).is_file()] or list(files)
    reason = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"
    return ValueError(
        f"{path}: {', '.join(there)} cannot be used ({reason}). Get the file again from where the model comes from, or repair the entry"
    )


def _attention_entries(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a config.json, at any depth, that choose code."""
    for key, value in content.items():
        if isinstance(value, dict) and not key.endswith("attn_implementation"):
            yield from _attention_entries(value, f"{prefix}{key}.")
        elif key.endswith(("attn_implementation", "experts_implementation")):
            for each in value.values() if isinstance(value, dict) else [value]:
                yield prefix + key, each


def _attention_of(config: PretrainedConfig) -> Iterator[tuple[str, Any]]:
    """The same of a config that is open, which may come from the hub."""
    yield "_attn_implementation", config._attn_implementation
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PretrainedConfig):
            yield f"{name}._attn_implementation", part._attn_implementation


def _refuse_kernel(file: Path, name: str, value: Any) -> None:
    """transformers takes a name with a slash for a repository of the hub, downloads it and runs it."""
    if isinstance(value, str) and "/" in value:
        raise ValueError(
            f"{file}: {name} is {value!r}, code that would be downloaded from the hub and run: take the entry out. Attention is chosen by "
            "`attn_implementation` in a recipe"
        )


def _check_template(path: str | Path, template: Any) -> None:
    """Raise ValueError where a chat template, or one of several, is no Jinja, or takes too much to be read."""
    named = template if isinstance(template, dict) else {"": template}
    for name, text in named.items():
        if text is None:
            continue
        try:
            if not isinstance(text, str):
                raise TypeError(f"a {type(text).__name__}, and no text")
            rendering.check(text)
        except (rendering.TemplateError, TypeError) as error:
            files = ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "processor_config.json"]
            there = [file for file in files if (Path(path) / file).is_file()] or files
            called = f" {name!r}" if name else ""
            wrong = "cannot be used: it" if isinstance(error, rendering.LimitError) else "is no Jinja template:"
            raise ValueError(f"{path}: the chat template{called} in {' or '.join(there)} {wrong} {error}") from error
