"""Checkpoints: the student alone, as plain Hugging Face files; complete or not there at all."""

import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ProcessorMixin

from switchkd.data.processor_files import save_processor
from switchkd.files import flush, settle
from switchkd.manifest import MANIFEST, absent_files, find_damage, read_manifest, write_manifest
from switchkd.models import Pathway
from switchkd.pairing.bridge import Bridge
from switchkd.train import lora
from switchkd.train.sharding import put
from switchkd.train.step import DistillationStep

_STAGING = ".saving"
_REMOVED = ".removed"
#: What the name of a checkpoint begins with that was passed over.
_ASIDE = "passed-over-"
_LORA = "lora.safetensors"
#: What learns with the student (`Pair.auxiliary_modules`), as far as it is there.
AUXILIARY = ("bridge", "learned")
#: The model card of a checkpoint.
CARD = "README.md"
#: What transformers' Trainer keeps of a run.
STATE = "trainer_state.json"
#: What every checkpoint needs.
_NEEDED = (STATE, "config.json", "*.safetensors")
#: What taking a further step needs besides, whatever it is sharded by: the last checkpoint of a stage has none of it.
_TO_GO_ON = ("*optim*", "*scheduler*", "rng_state*")
_NAME = re.compile(r"checkpoint-(\d+)")
#: The link to the checkpoint that is best on held-out rows.
BEST = "best"
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
            {n: state[n].contiguous() for n, p in student.model.named_parameters() if p.requires_grad},
            directory / _LORA,
        )
    else:
        student.model.save_pretrained(directory, state_dict=state)
    save_processor(processor, directory)
    (directory / CARD).write_text(card, encoding="utf-8")


def auxiliary_file(name: str, tag: str | None = None) -> str:
    """The file in a checkpoint of what learns with the student; of several teachers, of that of one."""
    return f"{name}.safetensors" if tag is None else f"{name}.{tag}.safetensors"


def load(step: DistillationStep, directory: str | Path) -> None:
    """Put what has learned from a checkpoint into `step`; where it is sharded, every process must call this.

    Raises:
        ValueError: if the checkpoint has other tensors than the pair.
    """
    load_student(step.pair.student, directory)
    load_auxiliary(step.auxiliary_modules, directory)


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
        put(learned, student.model, strict=False)
    else:
        # in the widest precision that is trained: what the config names may be narrower than the weights that learned
        floating = [p.dtype for p in student.model.parameters() if p.is_floating_point()]
        widest = max(floating, key=lambda dtype: dtype.itemsize)
        saved = type(student.model).from_pretrained(directory, dtype=widest, use_safetensors=True)
        put(saved.state_dict(), student.model)


def save_auxiliary(
    modules: Mapping[str, nn.Module | None], directory: str | Path, state: dict[str, Tensor] | None = None
) -> None:
    """Write what learns with the student, for resuming: no model needs it afterwards.

    Args:
        modules: `DistillationStep.auxiliary_modules`.
        directory: of the checkpoint.
        state: as in `save_student`.
    """
    for name, module in modules.items():
        if module is not None:
            own = module.state_dict() if state is None else {n: state[f"pair.{name}.{n}"] for n in module.state_dict()}
            save_file({n: tensor.contiguous() for n, tensor in own.items()}, Path(directory) / auxiliary_file(name))


def load_auxiliary(modules: Mapping[str, nn.Module | None], directory: str | Path) -> None:
    """Put what learned with the student of a checkpoint into `modules`.

    Raises:
        ValueError: if only one of the two has it.
    """
    for name, module in modules.items():
        file = Path(directory) / auxiliary_file(name)
        if file.exists() != (module is not None):
            where = f"{directory} was saved {'with' if file.exists() else 'without'} {file.name}"
            raise ValueError(f"{where}, and the recipe's pair has {'one' if module is not None else 'none'}")
        if module is not None:
            put(load_file(file), module)
        if isinstance(module, Bridge):
            module.fitted = True


def staging(run: str | Path) -> str:
    """The folder in `run` that a checkpoint is saved into before it is published."""
    return str(Path(run) / _STAGING)


def clear_staging(run: str | Path) -> None:
    """Make the staging folder empty: a killed save, or a killed removal, may have left files."""
    path = Path(staging(run))
    for leftover in (path, *Path(run).glob(f".*{_REMOVED}")):
        if leftover.exists():
            shutil.rmtree(leftover)
    path.mkdir(parents=True)


def publish(run: str | Path, step: int) -> Path:
    """Turn the finished save in the staging folder into `checkpoint-<step>`: checksums, flush to disk, rename.

    The Trainer saved it as `checkpoint-<step>` *inside* the staging folder.
    """
    name = f"checkpoint-{step}"
    staged, target = Path(staging(run)) / name, Path(run) / name
    write_manifest(staged)
    settle(staged)
    if target.exists():
        _set_aside(target, "another one was saved for this step")
    os.rename(staged, target)
    staged.parent.rmdir()
    for folder in target.absolute().parents[:2]:  # a new stage's folder is no more on the disk than what it holds
        flush(folder)
    return target


def point_to_best(run: str | Path, best: Path | None) -> None:
    """Have the link `best` in `run` lead to this checkpoint; there is none where none is the best."""
    link = Path(run) / BEST
    if best is None:
        link.unlink(missing_ok=True)
    elif not link.is_symlink() or os.readlink(link) != best.name:
        new = link.with_name(f".{BEST}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(best.name)
        os.replace(new, link)


def rotate(run: str | Path, step: int, limit: int | None, *, best: Path | None = None) -> None:
    """Remove all sound checkpoints before `step` but the newest: `limit` are left, with that of `step` itself, and the best besides.

    One that is damaged is neither counted nor removed, and neither is one of a later step, which this run did not write.
    """
    if limit is None:
        return
    older = [path for number, path in _numbered(run) if number < step and path != best]
    sound = [path for path in older if damaged(path) is None]
    for path in sound[limit - 1 :]:
        hidden = path.with_name(f".{path.name}{_REMOVED}")  # killed on the way, it must not be taken for a damaged one
        os.rename(path, hidden)
        shutil.rmtree(hidden)


def resume_point(run: str | Path) -> Path | None:
    """`latest`, after which what was passed over no longer stands in the way: it keeps its files under another name."""
    newest = latest(run)
    for _, path in _numbered(run):
        if path == newest:
            break
        _set_aside(path, f"it is damaged: {damaged(path)}")
    return newest


def latest(run: str | Path) -> Path | None:
    """The newest checkpoint of `run` whose checksums hold; a damaged one is named in the log and passed over."""
    for _, path in _numbered(run):
        if damage := damaged(path):
            _log.warning("%s is damaged (%s): passed over", path, damage)
        else:
            return path
    return None


def point_to_go_on_from(run: str | Path, steps: int) -> Path:
    """The newest sound checkpoint that a stage of so many steps can be taken up from. Its last one may be that of a shorter stage.

    Raises:
        ValueError: if none has what a further step needs.
    """
    sound = [(step, path) for step, path in _numbered(run) if damaged(path) is None]
    last, newest = sound[0]
    for step, path in sound:
        if not _lacking(path, _TO_GO_ON):
            if step < last:
                _log.warning(
                    "%s ended a stage of %d steps, without optimizer: going on from step %d", newest, last, step
                )
            return path
    raise ValueError(
        f"{newest} ended a stage of {last} steps and has no {_lacking(newest, _TO_GO_ON)[0]}, which further steps need, and now the stage "
        f"has {steps}. Put back the rows and the number of processes of then, or train on from this student: choose another "
        f"--train.output, with --student.path {newest}"
    )


def kept(run: str | Path, *, best: bool) -> Path | None:
    """The checkpoint that a finished stage ends with: the newest, or `best`, if there is one; None where there is no checkpoint.

    Raises:
        ValueError: the best one is damaged.
    """
    newest = latest(run)
    if newest is None or not best:
        return newest
    step = json.loads((newest / STATE).read_text(encoding="utf-8")).get("best_global_step")
    if not step:
        return newest
    chosen = Path(run) / f"checkpoint-{step}"
    if damage := damaged(chosen):
        raise ValueError(
            f"{chosen} is the best checkpoint of its stage and is damaged: {damage}. Put it back, or go on with the last one, {newest}: "
            "switchkd evaluate and switchkd export take its path"
        )
    return chosen


def damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if damage := find_damage(path):
        return damage
    lacking = _lacking(path, _NEEDED) or ([] if _ends_its_stage(path) else _lacking(path, _TO_GO_ON))
    return f"it has no {lacking[0]}, which resuming needs" if lacking else None


def _lacking(path: Path, patterns: tuple[str, ...]) -> list[str]:
    """The patterns that no name in the manifest of a checkpoint fits."""
    names = read_manifest(path)
    return [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)]


def _ends_its_stage(path: Path) -> bool:
    """Whether a checkpoint, whose files are sound, was saved after the last step of its stage."""
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(state, dict) and state["global_step"] >= state["max_steps"]


def steps_taken(path: Path) -> int:
    """The step after which a checkpoint was saved."""
    taken: int = json.loads((path / STATE).read_text(encoding="utf-8"))["global_step"]
    return taken


@contextmanager
def loading(folder: str | Path) -> Iterator[None]:
    """While the state of a run is read from a checkpoint: transformers starts anew, without a word, where a file is missing.

    Raises:
        ValueError: if a file is missing that the checkpoint's manifest names, or holds more than plain tensors and numbers.
    """
    folder = Path(folder)
    _raise_if_missing(folder)
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{folder}: a file of the optimizer, the schedule or the random generators holds Python objects, which could run code when "
            f"they are loaded, and is refused. Remove this folder: the run then goes on from the one before ({_first_line(error)})"
        ) from None
    _raise_if_missing(folder)


def _raise_if_missing(folder: Path) -> None:
    if missing := absent_files(folder, read_manifest(folder)):
        raise ValueError(
            f"{folder / missing[0]} is missing, and {MANIFEST} names it: the run cannot go on from there as it was. "
            "Start again: it then goes on from the checkpoint before"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _set_aside(path: Path, reason: str) -> None:
    """Give a checkpoint a name that nothing takes for one."""
    names = (f"{_ASIDE}{path.name}{ending}" for ending in ("", *(f"-{n}" for n in range(2, 1000))))
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    os.rename(path, target)
    _log.warning("%s is now %s (%s); remove it when you have looked at it", path, target.name, reason)


def _numbered(run: str | Path) -> list[tuple[int, Path]]:
    """Step and folder of all that is called a checkpoint, the newest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in Path(run).glob("checkpoint-*"))
    return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)
