"""Labelled photographs of a folder, a Parquet file or the hub: their classes as questions say them, and the split of each photograph."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetGenerationError
from PIL import Image

from switchkd.data.errors import DataError, SampleError
from switchkd.data.hub_sets import named_set
from switchkd.data.images import IMAGE_FORMATS, checked_file, open_image
from switchkd.world.scenes import SPLITS, Split

#: What files of photographs end in.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
#: Of the photographs of each class, percent that are in each split, but one at least.
SHARES: dict[Split, int] = {"train": 85, "validation": 5, "test": 10}
#: Fewer photographs of a class, or fewer classes, cannot fill three splits and ten kinds of questions.
FEWEST_PHOTOGRAPHS, FEWEST_CLASSES = 10, 3
#: Where a photograph is: its file, or its row of a table.
Place: TypeAlias = str | int
#: The name of its class as it is written, the digest of its file, and where it is.
Found: TypeAlias = tuple[str, str, Place]
Fetch: TypeAlias = Callable[[Place], dict[str, Any]]
#: Words and letters of answers that are no class.
TAKEN = frozenset({"empty", "none", "yes", "no", "and", "or", "a", "b", "c", "d"})


@dataclass(frozen=True)
class Photographs:
    """Photographs with their classes. Equal files are one photograph."""

    #: What they were named as.
    source: str
    #: As questions say them, in alphabetical order.
    classes: tuple[str, ...]
    #: Digest of its bytes → where it is, for every photograph; of each class, by split.
    by_split: dict[Split, dict[str, tuple[str, ...]]]
    #: Digest → its file's bytes or path, as `open_image` takes them.
    find: Callable[[str], dict[str, Any]]
    #: Files that were left out because another has the same bytes.
    repeated: int

    def open(self, digest: str) -> Image.Image:
        """The photograph, RGB and upright.

        Raises:
            SampleError: it cannot be decoded.
        """
        return open_image(self.find(digest))

    def of(self, split: Split) -> list[tuple[str, str]]:
        """Digest and class of every photograph of a split."""
        return [(digest, name) for name in self.classes for digest in self.by_split[split][name]]


def load_photographs(source: str | Path) -> Photographs:
    """Read which photographs there are and check that they can be asked about.

    Args:
        source: a folder with a folder of pictures for each class; Parquet files, a folder of them or a data set of `datasets` with an image
            and a label; a data set of the hub, OWNER/NAME, OWNER/NAME:CONFIG or OWNER/NAME::SPLIT.

    Raises:
        DataError: nothing is there, a file is no picture, or the classes are too few, too small, or cannot be told apart in text.
    """
    found, fetch = _found(source)
    names = _spoken([name for name, _, _ in found], str(source))
    classes: dict[str, str] = {}
    places: dict[str, Place] = {}
    for name, digest, place in found:
        if classes.setdefault(digest, names[name]) != names[name]:
            raise DataError(
                f"{source}: one picture is in two classes, {classes[digest]} and {names[name]}: {_shown(places[digest])} and "
                f"{_shown(place)} are equal; remove one of them"
            )
        places.setdefault(digest, place)
    members = defaultdict(list)
    for digest in sorted(classes):
        members[classes[digest]].append(digest)
    _check_sizes(members, str(source))
    split = {name: _split(digests) for name, digests in sorted(members.items())}
    return Photographs(
        str(source),
        tuple(sorted(members)),
        {one: {name: split[name][one] for name in split} for one in SPLITS},
        lambda digest: fetch(places[digest]),
        len(found) - len(places),
    )


def _split(digests: Sequence[str]) -> dict[Split, tuple[str, ...]]:
    """The first of them, sorted by what they hold, are tested on: nothing but the photographs themselves decides."""
    test, validation = (max(1, len(digests) * SHARES[split] // 100) for split in ("test", "validation"))
    return {
        "test": tuple(digests[:test]),
        "validation": tuple(digests[test : test + validation]),
        "train": tuple(digests[test + validation :]),
    }


def _check_sizes(members: dict[str, list[str]], source: str) -> None:
    if len(members) < FEWEST_CLASSES:
        raise DataError(
            f"{source}: has {len(members)} class{'' if len(members) == 1 else 'es'} of photographs ({', '.join(sorted(members))}); "
            f"questions need {FEWEST_CLASSES} at least, two that are shown and one that is not: give a folder with a folder for each class"
        )
    small = {name: len(digests) for name, digests in sorted(members.items()) if len(digests) < FEWEST_PHOTOGRAPHS}
    if small:
        raise DataError(
            f"{source}: too few different photographs for train, validation and test without one in two of them: "
            f"{', '.join(f'{name} has {count}' for name, count in small.items())}, each class needs {FEWEST_PHOTOGRAPHS}; "
            "add photographs, or remove the class"
        )


def _spoken(names: Sequence[str], source: str) -> dict[str, str]:
    """Names of classes as they are written → as questions say them."""
    spoken = {name: _say(name) for name in dict.fromkeys(names)}
    for name, said in spoken.items():
        if not any(character.isalnum() for character in said):
            raise DataError(f"{source}: the class {name!r} has no name that can be said; rename it")
        if said in TAKEN:
            raise DataError(
                f"{source}: the class {name!r} cannot be told from the answer {said!r} to other questions; rename it"
            )
    for said, count in Counter(spoken.values()).items():
        if count > 1:
            alike = ", ".join(repr(name) for name in spoken if spoken[name] == said)
            raise DataError(
                f"{source}: the classes {alike} cannot be told apart in text, all are {said!r}; rename them"
            )
    return spoken


def _say(name: str) -> str:
    """`Golden_Retriever` and `golden retriever, dog` are the golden retriever."""
    return " ".join(name.partition(",")[0].replace("_", " ").replace("-", " ").lower().split())


def _found(source: str | Path) -> tuple[list[Found], Fetch]:
    folder = Path(source)
    if folder.is_dir() and (classes := _class_folders(folder)):
        return list(_of_folders(folder, classes)), lambda place: {"bytes": None, "path": place}
    return _of_table(_table(str(source)), str(source))


def _class_folders(folder: Path) -> list[Path]:
    return [one for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")]


def _of_folders(folder: Path, classes: Sequence[Path]) -> Iterator[Found]:
    for one in classes:
        files = sorted(file for file in one.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise DataError(f"{one}: the class has no photographs; remove the empty folder")
        if all(file.parent != one for file in files):
            inside = ", ".join(sorted({file.relative_to(one).parts[0] for file in files})[:3])
            raise DataError(
                f"{one}: has its pictures in folders of its own ({inside}, …): which are the classes? If {one.name} is a split or a group "
                f"of classes, name {folder}::train, or {folder}::train+test for two splits: it is then read as `datasets` reads it, the "
                f"innermost folders are the classes. If {one.name} is a class, put its pictures into {one} itself"
            )
        for file in files:
            if not file.name.lower().endswith(ENDINGS):
                raise DataError(
                    f"{file}: is no picture by its name ({', '.join(ENDINGS)}); {folder} must hold a folder of pictures for each class "
                    f"and nothing else. A copy of a data set of the hub is named with its split: {folder}::train"
                )
            place = str(file.resolve())
            yield one.name, _digest({"bytes": None, "path": place}, str(file)), place


def _digest(image: dict[str, Any], name: str) -> str:
    """The SHA-256 of a picture's file, whose head has been read."""
    try:
        with checked_file(image, name) as file:
            with Image.open(file, formats=IMAGE_FORMATS):
                pass
            file.seek(0)
            return hashlib.sha256(file.read()).hexdigest()
    except (OSError, SampleError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{name}: is no picture that can be read ({type(error).__name__}: {error}); repair or remove it"
        ) from error


def _table(source: str) -> Any:
    """The `datasets.Dataset` of what is named."""
    path = Path(source)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        saved = datasets.load_from_disk(source)
        return datasets.concatenate_datasets(list(saved.values())) if isinstance(saved, datasets.DatasetDict) else saved
    if files:
        for file in files:
            if not file.is_file():
                raise DataError(f"{file}: no such file")
            try:
                pq.read_schema(file)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{file}: not a readable Parquet file: {error}; repair or remove it") from error
        try:
            return datasets.Dataset.from_parquet([str(file) for file in files])
        except (OSError, ValueError, TypeError, DatasetGenerationError, pa.ArrowException) as error:
            reason = error.__cause__ or error
            raise DataError(
                f"{source}: cannot be read as one table ({type(reason).__name__}: {reason}); all of its Parquet files need the same columns"
            ) from error
    if path.is_dir():
        raise DataError(f"{source}: holds neither a folder of pictures for each class nor Parquet files")
    of_hub = named_set(source)
    if of_hub is None:
        raise DataError(f"{source}: no such folder or file, and no name of a data set of the hub (OWNER/NAME)")
    return of_hub.loaded


def _of_table(table: Any, source: str) -> tuple[list[Found], Fetch]:
    image, label = _columns(table, source)
    names = table.features[label].names if isinstance(table.features[label], datasets.ClassLabel) else None
    rows = table.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))

    column = rows.with_format("arrow")[:][image]

    def fetch(place: Place) -> dict[str, Any]:
        content: dict[str, Any] = column[place].as_py()
        return content if content["bytes"] is None else {"bytes": content["bytes"], "path": None}

    found: list[Found] = []
    for number, row in enumerate(rows):
        value = row[label]
        if row[image] is None or value is None or (names is not None and not 0 <= value < len(names)):
            missing = "picture" if row[image] is None else "class"
            raise DataError(f"{source}, row {number}: has no {missing}; remove the row")
        content = row[image] if row[image]["bytes"] is None else {"bytes": row[image]["bytes"], "path": None}
        name = str(value) if names is None else names[value]
        found.append((name, _digest(content, f"{source}, row {number}"), number))
    return found, fetch


def _columns(table: Any, source: str) -> tuple[str, str]:
    """The columns with the photograph and with its class."""
    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [name for name in ("image", "img") if name in features]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels if len(labels) == 1 else [name for name in ("label", "class") if name in features]
    if len(images) != 1 or len(labels) != 1:
        what, found = ("photograph", images) if len(images) != 1 else ("class", labels)
        raise DataError(
            f"{source}: which column is the {what}? It has {', '.join(features)}; "
            f"{'none' if not found else ' and '.join(found)} can be. Name them image and label"
        )
    return images[0], labels[0]


def _shown(place: Place) -> str:
    return f"row {place}" if isinstance(place, int) else place
