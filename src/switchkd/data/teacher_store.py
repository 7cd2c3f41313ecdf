"""A teacher's answers on disk: what it says of every row, written once in shards and read while a student trains.

A folder holds `cache.json` (what the answers were made with), `shards/` and, last, `index.arrow`: the key of every row and where its
answers are. A shard, and the index, appear wholly or not at all. Every row has a checksum, verified at every read.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from safetensors import SafetensorError, safe_open

from switchkd.batch import Stored, sample_id
from switchkd.data.errors import DataError
from switchkd.data.store_shards import INDEX, SHARDS
from switchkd.data.stored_answers import checksum_of, from_tensors
from switchkd.files import write_together

#: What a cache was made with, by name.
MadeWith = dict[str, str | int | None]
_MADE_WITH = "cache.json"
#: What is said to do.
FILL = "run `switchkd cache RECIPE.yaml`, with the recipe that is trained"


def read_made_with(folder: Path) -> MadeWith | None:
    """What a cache was made with; None where there is none in the folder.

    Raises:
        DataError: a file that cannot be read.
    """
    file = folder / _MADE_WITH
    if not file.exists():
        return None
    try:
        origin = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}): remove {folder}, and {FILL}") from error
    if not isinstance(origin, dict):
        raise DataError(f"{file} is no object: remove {folder}, and {FILL}")
    return origin


def write_made_with(folder: Path, origin: MadeWith) -> None:
    """Begin a cache."""
    write_together({folder / _MADE_WITH: json.dumps(origin, indent=1) + "\n"})


def check_made_with(folder: Path, now: MadeWith) -> None:
    """Raise DataError, with both values, where a cache was made with something else than is there now."""
    saved = read_made_with(folder)
    if saved is None:
        raise DataError(f"{folder} holds no teacher's answers: {FILL}")
    changed = [
        f"{name}: {saved.get(name, 'not known')} in the cache, {now.get(name, 'nothing')} now"
        for name in dict.fromkeys([*now, *saved])
        if saved.get(name) != now.get(name)
    ]
    if changed:
        raise DataError(
            f"{folder} holds the answers of something else: {'; '.join(changed)}. Put back what was there, name another folder in "
            f"teacher.cache, or remove this one; then {FILL}"
        )


def describe(folder: Path) -> str:
    """How far a cache is, in words."""
    if not (folder / _MADE_WITH).exists():
        return f"{folder} holds none yet: {FILL}"
    if not (folder / INDEX).exists():
        shards = len(list((folder / SHARDS).glob("[0-9]*")))
        return f"{folder} is not complete ({shards} shards are written): {FILL}"
    store = TeacherStore(folder)
    size = sum(file.stat().st_size for file in (folder / SHARDS).iterdir())
    return f"{folder} is complete: {len(store):,} rows, {store.kind}, {size / 2**30:.2f} GiB"


class _Place(NamedTuple):
    shard: int
    begin: int
    answers: int
    checksum: int


class TeacherStore:
    """A complete cache, mapped into memory. Picklable: every process opens it for itself.

    Raises:
        DataError: it is not complete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[int, Any] = {}
        if not (folder / INDEX).exists():
            raise DataError(describe(folder))

    def __reduce__(self) -> tuple[type["TeacherStore"], tuple[Path]]:
        return TeacherStore, (self.folder,)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def kind(self) -> str:
        """What it holds of an answer, in words."""
        return str((read_made_with(self.folder) or {}).get("kept"))

    def check_rows(self, rows: Sequence[str]) -> None:
        """Raise DataError, naming the first, where the cache lacks some of the rows of these keys."""
        keys = pa.array(rows, pa.string())
        lacking = pc.filter(keys, pc.invert(pc.is_in(keys, value_set=self._table["key"].combine_chunks())))
        if len(lacking) == 0:
            return
        first = lacking[0].as_py()
        name, _, digest = first.rpartition("@")
        there = self._digest_of(name)
        reason = (
            "it is not there"
            if there is None
            else f"the row there has the digest {there} and this one {digest}: its text, its pictures or their files have changed"
        )
        raise DataError(
            f"sample {name!a}: {self.folder} has not this row; {reason}. {len(lacking):,} of {len(keys):,} rows are lacking: {FILL}, which "
            "adds them"
        )

    def read(self, key: str) -> Stored:
        """What the teacher says at the answers of one row that are compared, those of first words last.

        Raises:
            DataError: there is no such row, or what is there is damaged.
        """
        place = self._find(key)
        if place is None:
            raise DataError(f"sample {sample_id(key)!a}: {self.folder} has not this row: {FILL}, which adds it")
        try:
            opened = self._shard(place.shard)
            part = slice(place.begin, place.begin + place.answers)
            names = [name for name in opened.keys() if name not in ("counts", "checksums")]  # noqa: SIM118  # no mapping
            stored = from_tensors({name: opened.get_slice(name)[part] for name in names})
            checksum = checksum_of(stored)
        except (SafetensorError, OSError) as error:
            raise self._damaged(key, place, str(error)) from error
        if checksum != place.checksum:
            raise self._damaged(key, place, f"its checksum is {checksum:08x}, and {place.checksum:08x} was written")
        return stored

    def _damaged(self, key: str, place: _Place, reason: str) -> DataError:
        file = self.folder / SHARDS / self._names[place.shard]
        return DataError(f"sample {sample_id(key)!a}: {file} is damaged ({reason}): {FILL}, which writes it anew")

    def _find(self, key: str) -> _Place | None:
        number = bisect_left(_Texts(self._table["key"]), key)
        if number == len(self) or self._table["key"][number].as_py() != key:
            return None
        return _Place(*(self._table[name][number].as_py() for name in _Place._fields))

    def _digest_of(self, name: str) -> str | None:
        """The digest of the row of this id."""
        number = bisect_left(_Texts(self._table["key"]), f"{name}@")
        key = self._table["key"][number].as_py() if number < len(self) else ""
        return key.rpartition("@")[2] if sample_id(key) == name else None

    def _shard(self, number: int) -> Any:
        if number not in self._opened:
            self._opened[number] = safe_open(self.folder / SHARDS / self._names[number], framework="pt")
        return self._opened[number]

    @cached_property
    def _table(self) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(self.folder / INDEX))).read_all()

    @cached_property
    def _names(self) -> list[str]:
        names: list[str] = json.loads(self._table.schema.metadata[b"shards"])
        return names


class _Texts(Sequence[str]):
    """A column of texts, for bisection."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, number: Any) -> Any:
        return self.column[number].as_py()
