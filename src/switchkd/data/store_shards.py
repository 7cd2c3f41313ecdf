"""The files of a teacher's cache: rows cut into shards, each written wholly or not at all, and the index that completes them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from switchkd.batch import Stored, sample_id
from switchkd.data.errors import DataError
from switchkd.data.stored_answers import checksum_of, from_tensors, joined, part_of, tensors_of
from switchkd.files import whole_file

#: In the folder of a cache.
INDEX, SHARDS = "index.arrow", "shards"
#: A shard is full with so many bytes or rows: what is made anew after an interruption is one of them for each process.
_SHARD_BYTES = 128 * 2**20
_SHARD_ROWS = 2_000
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("begin", pa.int64()),
        ("answers", pa.int64()),
        ("checksum", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Shard:
    """A file of a cache: which rows it holds, in this order, and how many answers of each."""

    name: str
    keys: tuple[str, ...]
    counts: tuple[int, ...]


def plan_shards(keys: Sequence[str], counts: Sequence[int], answer_bytes: int) -> list[Shard]:
    """Cut rows into shards. What a shard holds depends on the rows alone, and its name on what it holds: a shard of that name is done."""
    shards: list[Shard] = []
    begin = size = 0
    for number, count in enumerate(counts):
        size += count * answer_bytes
        if size >= _SHARD_BYTES or number + 1 - begin == _SHARD_ROWS or number + 1 == len(counts):
            part = slice(begin, number + 1)
            shards.append(_named(len(shards), tuple(keys[part]), tuple(counts[part])))
            begin, size = number + 1, 0
    return shards


def _named(number: int, keys: tuple[str, ...], counts: tuple[int, ...]) -> Shard:
    digest = blake2b(json.dumps([keys, counts]).encode(), digest_size=8).hexdigest()
    return Shard(f"{number:06}-{digest}.safetensors", keys, counts)


def write_shard(folder: Path, shard: Shard, answers: Sequence[Stored]) -> None:
    """Write the answers of the rows of a shard, in its order."""
    for key, count, stored in zip(shard.keys, shard.counts, answers, strict=True):
        if len(next(iter(tensors_of(stored).values()))) != count:
            raise DataError(
                f"sample {sample_id(key)!a}: the index has {count} answer tokens to compare, and a batch another number"
            )
    together = joined(answers)
    assert together is not None, "a shard has rows"
    tensors = {
        **{name: tensor.contiguous() for name, tensor in tensors_of(together).items()},
        "counts": torch.tensor(shard.counts),
        "checksums": torch.tensor([checksum_of(stored) for stored in answers]),
    }
    with whole_file(folder / SHARDS / shard.name) as staging:
        staging.write_bytes(save(tensors, {"keys": json.dumps(shard.keys)}))


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether a shard is there, and every row in it is what was written."""
    file = folder / SHARDS / shard.name
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            keys = tuple(json.loads(opened.metadata()["keys"]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return False
    counts, sums = tensors.pop("counts").tolist(), tensors.pop("checksums").tolist()
    stored, begin = from_tensors(tensors), 0
    for count, expected in zip(counts, sums, strict=True):
        if checksum_of(part_of(stored, slice(begin, begin + count))) != expected:
            return False
        begin += count
    return keys == shard.keys and tuple(counts) == shard.counts


def clear(folder: Path, kept: Iterable[Shard]) -> int:
    """Remove the index, what was left half-written, and shards that are not to be kept; returns how many of these there were."""
    (folder / INDEX).unlink(missing_ok=True)
    (folder / SHARDS).mkdir(parents=True, exist_ok=True)
    names, removed = {shard.name for shard in kept}, 0
    for file in (folder / SHARDS).iterdir():
        if file.name not in names:
            removed += not file.name.startswith(".")
            file.unlink()
    return removed


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """Complete a cache, all of whose shards are there."""
    entries: list[tuple[str, int, int, int, int]] = []
    for number, shard in enumerate(shards):
        with safe_open(folder / SHARDS / shard.name, framework="pt") as opened:
            sums = opened.get_tensor("checksums").tolist()
        begin = 0
        for key, count, checksum in zip(shard.keys, shard.counts, sums, strict=True):
            entries.append((key, number, begin, count, checksum))
            begin += count
    schema = _SCHEMA.with_metadata({"shards": json.dumps([shard.name for shard in shards])})
    table = pa.table(list(zip(*sorted(entries), strict=True)), schema=schema)
    with (
        whole_file(folder / INDEX) as staging,
        pa.OSFile(str(staging), "wb") as file,
        pa.ipc.new_file(file, schema) as out,
    ):
        out.write_table(table)
