"""A benchmark's rows: from Parquet files in the schema of lmms-eval's data set, or from the hub. All are checked before any is asked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Image, load_dataset

from switchkd.data.errors import DataError
from switchkd.evaluate.benchmarks.benchmark import Benchmark
from switchkd.evaluate.benchmarks.gqa import IMAGES_CONFIG, IMAGES_FILE


@dataclass(frozen=True)
class Rows:
    """A benchmark's rows, checked, and where they come from. GQA's images may stand in rows of their own, by `imageId`."""

    rows: Dataset
    where: str
    images: Dataset | None = None
    image_rows: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def doc(self, number: int) -> dict[str, Any]:
        """The row with its images, undecoded."""
        row = dict(self.rows[number])
        if self.images is not None and self.image_rows is not None:
            row["image"] = self.images[self.image_rows[row["imageId"]]]["image"]
        return row

    def name(self, number: int) -> str:
        """What a message calls the row."""
        return f"{self.where}, row {number}"


def load(benchmark: Benchmark, folder: Path | None, upstream: Mapping[str, Any]) -> Rows:
    """The rows of `folder/NAME.parquet` or of all Parquet files in `folder/NAME/`; without a folder, of the hub's data set.

    Args:
        benchmark: which one.
        folder: one for all benchmarks.
        upstream: lmms-eval's configuration of the task, which names the data set on the hub.

    Raises:
        DataError: no such data, a column that is missing, or a row that cannot be asked or scored.
    """
    if folder is not None:
        rows, where = _read(folder, benchmark.name)
        images = _read(folder, IMAGES_FILE)[0] if _joins(benchmark, rows) else None
    else:
        rows, where = _download(benchmark, upstream, upstream.get("dataset_name"))
        images = _download(benchmark, upstream, IMAGES_CONFIG)[0] if _joins(benchmark, rows) else None
    return checked(benchmark, Rows(rows, where, images, _by_id(images)))


def _joins(benchmark: Benchmark, rows: Dataset) -> bool:
    """Whether the images are elsewhere."""
    return benchmark.name == "gqa" and "image" not in rows.column_names and "imageId" in rows.column_names


def _by_id(images: Dataset | None) -> dict[str, int] | None:
    if images is None:
        return None
    return {str(name): number for number, name in enumerate(images.select_columns("id")["id"])}


def _read(folder: Path, name: str) -> tuple[Dataset, str]:
    file, parts = folder / f"{name}.parquet", folder / name
    files = [file] if file.is_file() else sorted(parts.glob("*.parquet")) if parts.is_dir() else []
    if not files:
        raise DataError(f"{name}: neither the file {file} nor Parquet files in the folder {parts}")
    if file.is_file() and parts.is_dir():
        raise DataError(f"{name}: there are both {file} and {parts}; keep one")
    where = str(file if files == [file] else parts)
    try:
        return undecoded(Dataset.from_parquet([str(path) for path in files])), where
    except Exception as error:  # datasets wraps whatever pyarrow raised
        cause = error.__cause__ or error
        raise DataError(f"{where}: not readable as Parquet with one schema: {cause}") from error


def _download(benchmark: Benchmark, upstream: Mapping[str, Any], config: str | None) -> tuple[Dataset, str]:
    path, split = upstream["dataset_path"], str(upstream["test_split"])
    where = "/".join(part for part in (path, config, split) if part)
    try:
        return undecoded(load_dataset(path, config, split=split)), where
    except Exception as error:  # the network's, the hub's and the reader's errors share no class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{benchmark.name}: {where} cannot be loaded from the hub ({reason}); give its files with --data"
        ) from error


def undecoded(rows: Dataset) -> Dataset:
    """The rows with their images as `{"bytes": …, "path": …}`."""
    for name, feature in rows.features.items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    return rows


def checked(benchmark: Benchmark, data: Rows) -> Rows:
    """The rows, if every one of them can be asked and scored.

    Raises:
        DataError: with the file, the row's number from 0 and what is wrong with it.
    """
    rows, joined = data.rows, data.images is not None
    needed = benchmark.columns + (() if joined else benchmark.images)
    if absent := [name for name in needed if name not in rows.column_names]:
        raise DataError(
            f"{data.where}: {benchmark.title} needs the columns {', '.join(needed)}; there is no {', '.join(absent)}, "
            f"but {', '.join(rows.column_names)}"
        )
    if not len(rows):
        raise DataError(f"{data.where}: has no rows")
    if joined:
        has_image = {
            "image": [str(name) in (data.image_rows or {}) for name in rows.select_columns("imageId")["imageId"]]
        }
    else:
        has_image = {name: _present(rows, name, data.where) for name in benchmark.images}
    light = rows.select_columns(list(benchmark.columns))
    for number, row in enumerate(light):
        images = {name: present[number] for name, present in has_image.items()}
        if problem := benchmark.check({**row, **images}):
            raise DataError(f"{data.name(number)}: {problem}")
    if problem := benchmark.check_all({name: light[name] for name in benchmark.columns}):
        raise DataError(f"{data.where}: {problem}")
    return data


def _present(rows: Dataset, name: str, where: str) -> list[bool]:
    """For each row whether the column holds an image's bytes."""
    kind = rows.features[name]
    if not isinstance(kind, Image) and not (isinstance(kind, dict) and set(kind) == {"bytes", "path"}):
        raise DataError(f"{where}: `{name}` must hold images with their bytes inside, as datasets.Image writes them")
    column = rows.with_format("arrow")[:][name]
    return list(pc.struct_field(column, "bytes").is_valid().to_pylist())
