"""Every row is encoded once, before training: which rows can be used, how long they are, and a key for each.

The verdicts lie in the cache (see `verdicts`), so a later start, stage, rank or run encodes nothing.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc
import torch.distributed as dist
from datasets import Dataset, concatenate_datasets

from switchkd.batch import sample_id
from switchkd.data.errors import MAX_BAD_FRACTION, DataError, check_bad_share
from switchkd.data.verdicts import Encoder, Measured, open_verdicts
from switchkd.files import write_together
from switchkd.processes import processes

__all__ = ["BadRow", "Encoder", "Measured", "RowIndex", "TruncatedRow", "build_index"]

_log = logging.getLogger(__name__)

#: The columns that usable rows get.
_ADDED = ["key", "length", "answers", "compared", "tokens", "answers_by_words", "compared_by_words", "image_count"]


class BadRow(NamedTuple):
    """A row that cannot be used."""

    id: str
    reason: str


class TruncatedRow(NamedTuple):
    """A row whose last answers are cut."""

    id: str
    tokens: int
    kept_tokens: int


@dataclass(frozen=True)
class RowIndex:
    """The usable rows, and what became of the others.

    `rows` has the canonical columns without `problem`, and `key`, `image_count` and what is in `Measured`. Rows that come from files are
    mapped into memory.
    """

    rows: Dataset
    bad: tuple[BadRow, ...]
    truncated: tuple[TruncatedRow, ...]


def build_index(
    rows: Dataset,
    encoder: Encoder,
    *,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    report_path: str | Path | None = None,
    recheck_pictures: bool = False,
) -> RowIndex:
    """Measure every row, or read from the cache what has been measured.

    Bad rows (images that are missing, corrupt, too large or outside the image folder; no answer token; too long) are skipped, never
    silently: each is logged with its id and reason and listed in `report_path` (JSON), and so are rows whose last answers are cut. Bad rows
    whose images have changed since are measured again.

    In several ranks the main process of each node measures, with all cores, and the others wait for it: every rank must call this.

    Args:
        rows: canonical rows, as `formats.load_rows` gives them.
        encoder: what the rows are measured with.
        max_bad_fraction: the share of bad rows that is put up with.
        report_path: where to list bad and truncated rows.
        recheck_pictures: whether usable rows whose pictures have changed are measured again too, so that their keys are current.

    Raises:
        DataError: there is no row, no row is usable, or more than `max_bad_fraction` of them are bad. The report is written first.
    """
    if len(rows) == 0:
        raise DataError("there are no rows to index; look at the data file")
    with _local_main_first() as is_first:
        verdicts = open_verdicts(rows, encoder, measure=is_first, recheck_pictures=recheck_pictures)
    bad, truncated = _bad_rows(verdicts), _truncated_rows(verdicts)
    for row in bad:
        _log.warning("skipped %s", row.reason)
    if truncated:
        _log.warning(
            "%d of %d samples are longer than max_length; their last answers are cut", len(truncated), len(rows)
        )
    if report_path is not None:
        summary = {"rows": len(rows), "kept": len(rows) - len(bad), "max_bad_fraction": max_bad_fraction}
        listed = {"bad": [row._asdict() for row in bad], "truncated": [row._asdict() for row in truncated]}
        write_together({Path(report_path): json.dumps(summary | listed, indent=2, ensure_ascii=False) + "\n"})
    check_bad_share([row.reason for row in bad], len(rows), max_bad_fraction, listed=str(report_path or ""))
    return RowIndex(_usable(rows, verdicts), bad, truncated)


def _usable(rows: Dataset, verdicts: Dataset) -> Dataset:
    columns = [column for column in rows.column_names if column not in ("problem", *_ADDED)]
    joined = concatenate_datasets([rows.select_columns(columns), verdicts.select_columns(_ADDED)], axis=1)
    usable = pc.indices_nonzero(pc.is_null(verdicts.data["reason"]))
    # `datasets` looks for neighbouring rows with the numbers that it gets, and unsigned ones become fractions there.
    return joined if len(usable) == len(rows) else joined.select(usable.to_numpy().astype("int64"))


def _bad_rows(verdicts: Dataset) -> tuple[BadRow, ...]:
    table = verdicts.data.table.select(["key", "reason"]).filter(pc.is_valid(verdicts.data["reason"]))
    return tuple(BadRow(sample_id(row["key"]), row["reason"]) for row in table.to_pylist())


def _truncated_rows(verdicts: Dataset) -> tuple[TruncatedRow, ...]:
    shorter = pc.less(verdicts.data["length"], verdicts.data["tokens"])
    table = verdicts.data.table.select(["key", "tokens", "length"]).filter(shorter)
    return tuple(TruncatedRow(sample_id(row["key"]), row["tokens"], row["length"]) for row in table.to_pylist())


@contextmanager
def _local_main_first() -> Iterator[bool]:
    """The main process of each node goes in first, and is told so; the others follow when it has left, however long that takes."""
    state = processes()
    if state.num_processes == 1:
        yield True
        return
    # Collectives of the training's own group would give up after some minutes.
    group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    is_first = state.is_local_main_process
    if not is_first:
        dist.barrier(group=group)
    try:
        yield is_first
    finally:
        if is_first:
            dist.barrier(group=group)
