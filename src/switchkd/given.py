"""Models and rows in memory, written into a run's folder: what a recipe names is on disk, so that the run can be resumed and repeated."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from transformers import PreTrainedModel, ProcessorMixin

from switchkd.data.errors import DataError
from switchkd.data.llava_rows import write_llava
from switchkd.data.sources import Data
from switchkd.files import checksum, replace_folder

#: A checkpoint directory or a name on the hub, or a model in memory.
Model: TypeAlias = str | PathLike[str] | PreTrainedModel

FOLDER = "given"
_log = logging.getLogger(__name__)


@dataclass
class Given:
    """What of a run is in memory, and the files of its folder that it is written to."""

    output: Path
    models: dict[Path, tuple[PreTrainedModel, ProcessorMixin]] = field(default_factory=dict)
    rows: dict[Path, Data] = field(default_factory=dict)

    def name_model(self, who: str, model: Model, processor: ProcessorMixin | None) -> str:
        """What a recipe calls a model: its own name, or the folder that `write` makes of it.

        Raises:
            TypeError: it is neither a name nor a model of transformers.
            ValueError: it cannot be written as a checkpoint by itself, its processor is missing, or a name comes with a processor.
        """
        if isinstance(model, str | PathLike):
            if processor is not None:
                raise ValueError(
                    f"{who} {model} is opened with the processor that lies there: leave out the one in memory"
                )
            return str(model)
        if not isinstance(model, PreTrainedModel):
            raise TypeError(
                f"{who} must be a path, a name on the hub or a model of transformers, got {type(model).__name__}"
                + ("; merge its adapters first: model.merge_and_unload()" if hasattr(model, "merge_and_unload") else "")
            )
        if processor is None:
            raise ValueError(f"{who} is a model in memory: give its processor too")
        if getattr(model, "_hf_peft_config_loaded", False) or getattr(model, "hf_quantizer", None) is not None:
            raise ValueError(
                f"{who} is a model in memory with adapters or quantised weights, which is no checkpoint by itself: save it merged and in "
                "full precision, and give its path (a recipe has student.lora, student.quantization and teacher.quantization)"
            )
        folder = self.output / FOLDER / who
        self.models[folder] = (model, processor)
        return str(folder)

    def name_rows(self, what: str, rows: Data) -> str | list[str]:
        """What a recipe calls data: their own names, or the file that `write` makes of rows in memory."""
        if isinstance(rows, str | PathLike):
            return str(rows)
        if isinstance(rows, list | tuple) and rows and all(isinstance(one, str | PathLike) for one in rows):
            return [str(one) for one in rows]
        file = self.output / FOLDER / what / "rows.jsonl"
        self.rows[file] = rows
        return str(file)

    def write(self, max_bad_fraction: float) -> None:
        """Write all of it, each whole or not at all. Rows that cannot be used are named in the log and left out.

        Raises:
            DataError: more than `max_bad_fraction` of the rows cannot be used; and as `load_rows`.
        """
        for folder, (model, processor) in self.models.items():
            with _put(folder) as made:
                model.save_pretrained(made)
                processor.save_pretrained(made)
        for file, rows in self.rows.items():
            with _put(file.parent) as made:
                done = write_llava(rows, made / file.name)
                count = done.rows + len(done.left_out)
                if len(done.left_out) > max_bad_fraction * count:
                    raise DataError(
                        f"{len(done.left_out)} of {count} rows in memory ({len(done.left_out) / count:.1%}) are unusable, more than the "
                        f"allowed {max_bad_fraction:.1%}. First: {done.left_out[0]}. Repair the data or raise data.max_bad_fraction"
                    )
                for reason in done.left_out:
                    _log.warning("left out: %s", reason)


@contextmanager
def _put(folder: Path) -> Iterator[Path]:
    """A folder to write into. What is written goes to `folder`, unless the same is there: rows are known by the dates of their pictures."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", dir=folder.parent) as name:
        yield Path(name)
        if _checksums(Path(name)) != _checksums(folder):
            with replace_folder(folder) as staging:
                shutil.copytree(name, staging, dirs_exist_ok=True)


def _checksums(folder: Path) -> dict[Path, str]:
    return {file.relative_to(folder): checksum(file) for file in folder.rglob("*") if file.is_file()}
