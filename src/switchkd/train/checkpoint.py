"""Checkpoints: the student alone, as plain Hugging Face files; complete or not there at all."""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ProcessorMixin

from switchkd.data.processor_files import save_processor
from switchkd.files import flush
from switchkd.models import Pathway
from switchkd.pairing.bridge import Bridge
from switchkd.train import lora

MANIFEST = "manifest.json"
_STAGING = ".saving"
_LORA = "lora.safetensors"
#: What learns with the student (`Pair.auxiliary_modules`) → its file in a checkpoint.
AUXILIARY = {"bridge": "bridge.safetensors", "learned": "learned.safetensors"}
_NAME = re.compile(r"checkpoint-(\d+)")
_log = logging.getLogger(__name__)


def save_student(
    student: Pathway,
    processor: ProcessorMixin,
    card: str,
    directory: str | Path,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write the student as plain Hugging Face code loads it: weights, config, processor and model card.

    Args:
        student: the pathway to save; LoRA adapters are merged into the saved weights, and kept with them for resuming.
        processor: its processor.
        card: the text of README.md.
        directory: is made if needed.
        state: the whole pair's gathered state dict where the parameters are sharded (FSDP, DeepSpeed).
    """
    directory = Path(directory)
    prefix = "pair.student.model."
    if state is None:
        state = student.model.state_dict()
    else:
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if lora.present(student):
        lora.plain(student, state).save_pretrained(directory)
        # the scale alpha / r is the recipe's; this holds what the optimizer moves
        save_file(
            {n: p.detach().contiguous() for n, p in student.model.named_parameters() if p.requires_grad},
            directory / _LORA,
        )
    else:
        student.model.save_pretrained(directory, state_dict=state)
    save_processor(processor, directory)
    (directory / "README.md").write_text(card, encoding="utf-8")


def load_student(student: Pathway, directory: str | Path) -> None:
    """Put the weights of a checkpoint into `student`.

    Raises:
        ValueError: if its tensors are not exactly those of `student`.
    """
    directory = Path(directory)
    if lora.present(student):
        if not (directory / _LORA).exists():
            raise ValueError(f"{directory} was saved without LoRA, and the recipe's student has LoRA")
        learned = load_file(directory / _LORA)
        expected = {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}
        if learned.keys() != expected:
            raise ValueError(
                f"{directory}: holds {len(learned)} trained tensors where the recipe trains {len(expected)}"
            )
        student.model.load_state_dict(learned, strict=False)
    else:
        # in the widest precision that is trained: what the config names may be narrower than the weights that learned
        floating = [p.dtype for p in student.model.parameters() if p.is_floating_point()]
        widest = max(floating, key=lambda dtype: dtype.itemsize)
        saved = type(student.model).from_pretrained(directory, dtype=widest, use_safetensors=True)
        student.model.load_state_dict(saved.state_dict())


def save_auxiliary(
    modules: Mapping[str, nn.Module | None], directory: str | Path, state: dict[str, Tensor] | None = None
) -> None:
    """Write what learns with the student, for resuming: no model needs it afterwards.

    Args:
        modules: `Pair.auxiliary_modules`.
        directory: of the checkpoint.
        state: as in `save_student`.
    """
    for name, module in modules.items():
        if module is not None:
            own = module.state_dict() if state is None else {n: state[f"pair.{name}.{n}"] for n in module.state_dict()}
            save_file({n: tensor.contiguous() for n, tensor in own.items()}, Path(directory) / AUXILIARY[name])


def load_auxiliary(modules: Mapping[str, nn.Module | None], directory: str | Path) -> None:
    """Put what learned with the student of a checkpoint into `modules`.

    Raises:
        ValueError: if only one of the two has it.
    """
    for name, module in modules.items():
        file = Path(directory) / AUXILIARY[name]
        if file.exists() != (module is not None):
            where = f"{directory} was saved {'with' if file.exists() else 'without'} {file.name}"
            raise ValueError(f"{where}, and the recipe's pair has {'one' if module is not None else 'none'}")
        if module is not None:
            module.load_state_dict(load_file(file))
        if isinstance(module, Bridge):
            module.fitted = True


def staging(run: str | Path) -> str:
    """The folder in `run` that a checkpoint is saved into before it is published."""
    return str(Path(run) / _STAGING)


def clear_staging(run: str | Path) -> None:
    """Make the staging folder empty: a killed save may have left files there."""
    path = Path(staging(run))
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True)


def publish(run: str | Path, step: int) -> Path:
    """Turn the finished save in the staging folder into `checkpoint-<step>`: checksums, flush to disk, rename.

    The Trainer saved it as `checkpoint-<step>` *inside* the staging folder.
    """
    name = f"checkpoint-{step}"
    staged, target = Path(staging(run)) / name, Path(run) / name
    manifest = {str(file.relative_to(staged)): _sha256(file) for file in _files(staged)}
    (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in [*_files(staged), staged]:
        flush(path)
    if target.exists():
        shutil.rmtree(target)
    os.rename(staged, target)
    staged.parent.rmdir()
    flush(target.parent)
    return target


def latest(run: str | Path) -> Path | None:
    """The newest checkpoint of `run` whose checksums hold; a damaged one is named in the log and passed over."""
    numbered = [
        (int(match[1]), path) for path in Path(run).glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    for _, path in sorted(numbered, reverse=True):
        if damage := damaged(path):
            _log.warning("%s is damaged (%s): passed over", path, damage)
        else:
            return path
    return None


def damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if _sha256(file) != expected:
            return f"{name} does not match its checksum"
    return None


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
