"""A benchmark's samples: from Parquet files in the schema of lmms-eval's data set, or from the hub. All are checked before any is asked."""

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
class Samples:
    """A benchmark's samples, checked, and where they come from. GQA's images may stand in a table of their own, by `imageId`."""

    table: Dataset
    where: str
    images: Dataset | None = None
    #: Id of an image → its place in `images`.
    image_places: Mapping[str, int] | None = None

    def __len__(self) -> int:
        return len(self.table)

    def doc(self, number: int) -> dict[str, Any]:
        """The sample with its images, undecoded."""
        sample = dict(self.table[number])
        if self.images is not None and self.image_places is not None:
            sample["image"] = self.images[self.image_places[sample["imageId"]]]["image"]
        return sample

    def name(self, number: int) -> str:
        """What a message calls the sample."""
        return f"{self.where}, row {number}"


def load(benchmark: Benchmark, folder: Path | None, upstream: Mapping[str, Any]) -> Samples:
    """The samples of `folder/NAME.parquet` or of all Parquet files in `folder/NAME/`; without a folder, of the hub's data set.

    Args:
        benchmark: which one.
        folder: one for all benchmarks.
        upstream: lmms-eval's configuration of the task, which names the data set on the hub.

    Raises:
        DataError: no such data, a column that is missing, or a sample that cannot be asked or scored.
    """
    if folder is not None:
        table, where = _read(folder, benchmark.name)
        images = _read(folder, IMAGES_FILE)[0] if _joins(benchmark, table) else None
    else:
        table, where = _download(benchmark, upstream, upstream.get("dataset_name"))
        images = _download(benchmark, upstream, IMAGES_CONFIG)[0] if _joins(benchmark, table) else None
    return checked(benchmark, Samples(table, where, images, _by_id(images)))


def _joins(benchmark: Benchmark, table: Dataset) -> bool:
    """Whether the images are elsewhere."""
    return benchmark.name == "gqa" and "image" not in table.column_names and "imageId" in table.column_names


def _by_id(images: Dataset | None) -> dict[str, int] | None:
    if images is None:
        return None
    return {str(name): place for place, name in enumerate(images.select_columns("id")["id"])}


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


def undecoded(table: Dataset) -> Dataset:
    """The samples with their images as `{"bytes": …, "path": …}`."""
    for name, feature in table.features.items():
        if isinstance(feature, Image):
            table = table.cast_column(name, Image(decode=False))
    return table


def checked(benchmark: Benchmark, samples: Samples) -> Samples:
    """The samples, if every one of them can be asked and scored.

    Raises:
        DataError: with the file, the sample's number from 0 and what is wrong with it.
    """
    table, joined = samples.table, samples.images is not None
    needed = benchmark.columns + (() if joined else benchmark.images)
    if absent := [name for name in needed if name not in table.column_names]:
        raise DataError(
            f"{samples.where}: {benchmark.title} needs the columns {', '.join(needed)}; there is no {', '.join(absent)}, "
            f"but {', '.join(table.column_names)}"
        )
    if not len(table):
        raise DataError(f"{samples.where}: has no rows")
    if joined:
        places = samples.image_places or {}
        has_image = {"image": [str(name) in places for name in table.select_columns("imageId")["imageId"]]}
    else:
        has_image = {name: _present(table, name, samples.where) for name in benchmark.images}
    light = table.select_columns(list(benchmark.columns))
    for number, sample in enumerate(light):
        images = {name: present[number] for name, present in has_image.items()}
        if problem := benchmark.check({**sample, **images}):
            raise DataError(f"{samples.name(number)}: {problem}")
    if problem := benchmark.check_all({name: light[name] for name in benchmark.columns}):
        raise DataError(f"{samples.where}: {problem}")
    return samples


def _present(table: Dataset, name: str, where: str) -> list[bool]:
    """For each sample whether the column holds an image's bytes."""
    kind = table.features[name]
    if not isinstance(kind, Image) and not (isinstance(kind, dict) and set(kind) == {"bytes", "path"}):
        raise DataError(f"{where}: `{name}` must hold images with their bytes inside, as datasets.Image writes them")
    column = table.with_format("arrow")[:][name]
    return list(pc.struct_field(column, "bytes").is_valid().to_pylist())
