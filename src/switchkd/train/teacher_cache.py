"""Fill a teacher's cache: what it says of every row of a recipe, once, by all processes of the command, going on where it was killed."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset, concatenate_datasets
from filelock import Timeout
from torch import Tensor, distributed
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from switchkd.agree import on_main
from switchkd.batch import TEACHER, Batch, Stored, TopLogits
from switchkd.console import progress, quiet, say, warn
from switchkd.data.collate import Collator
from switchkd.data.errors import DataError
from switchkd.data.store_shards import SHARDS, Shard, clear, is_whole, plan_shards, write_index, write_shard
from switchkd.data.stored_answers import bytes_per_answer, joined, part_of
from switchkd.data.tagged import taught_by
from switchkd.data.teacher_store import MadeWith, TeacherStore, check_made_with, read_made_with, write_made_with
from switchkd.lock import Lock
from switchkd.pairing import Pair
from switchkd.processes import processes
from switchkd.recipe.schema import Recipe, ResolvedStage
from switchkd.signals import Compared, FromHidden
from switchkd.train.context import RunContext
from switchkd.train.open_teacher import made_with
from switchkd.train.stage import index_held_out, index_rows, open_run
from switchkd.train.teacher_device import device_of

_LOCK = ".lock"
#: Answers whose logits stand in memory at a time while the largest are sought.
_ROWS = 256
#: What the disk of a cache must have besides its answers, for each row: its key, count and checksum, twice.
_ROW_BYTES = 256


@dataclass(frozen=True)
class CacheMade:
    """What a command has done."""

    folder: Path
    rows: int
    answers: int
    #: Of these, rows whose answers were written now; the others were there.
    written: int
    #: Of the largest logits: the mean over all answers of the teacher's probability on other ids, and the largest; None for hidden states.
    left_out: tuple[float, float] | None


def make_caches(recipe: Recipe) -> list[CacheMade]:
    """Write into each `teacher.cache` what that teacher says of every row that a stage trains on or measures with it.

    Every process of a launched command writes shards of its own. What is there already is looked through and stays.

    Raises:
        ValueError: the recipe names no cache or has no stage with a teacher; another command fills the folder.
        DataError: the folder holds the answers of something else, or rows cannot be used.
        OSError: the disk has less room than the answers need.
    """
    if all(teacher.cache is None for teacher in recipe.teacher_sections.values()):
        raise ValueError(
            "the recipe names no folder for a cache: add `teacher: {cache: FOLDER}`, or --teacher.cache FOLDER"
        )
    stages: dict[Path, list[_Taught]] = {}
    for stage in recipe.resolved_stages():
        for tag, one in stage.by_teacher.items():
            if one.teacher is not None and one.teacher.cache is not None:
                taught = _Taught(one, stage, tag if stage.tagged else None)
                stages.setdefault(Path(one.teacher.cache), []).append(taught)
    if not stages:
        raise ValueError("no stage of the recipe learns from the teacher, so there is nothing to keep of it")
    with ExitStack() as held:
        for folder in stages:
            held.enter_context(_held(folder))
        run = open_run(recipe, use_cache=False)
        return [_fill(run, *one) for one in stages.items()]


class _Taught(NamedTuple):
    """A stage as a teacher sees that it teaches, and which rows of it."""

    #: With this teacher alone.
    alone: ResolvedStage
    whole: ResolvedStage
    #: Of the rows that it teaches; None: all.
    tag: str | None

    def of(self, rows: Dataset) -> Dataset:
        """Those of the stage's rows that it teaches."""
        return rows if self.tag is None else taught_by(rows, self.tag)


def _fill(run: RunContext, folder: Path, stages: list[_Taught]) -> CacheMade:
    """Fill the folder of the teacher that these stages have."""
    teacher = run.teachers.of(stages[0].alone)
    assert teacher is not None
    now = made_with(run.recipe, teacher.section, run.reader, teacher.reading)
    on_main(lambda: _begin(folder, now))
    taught: list[Dataset] = []
    for stage in stages:
        found = stage.whole, folder / "rows" / stage.whole.name
        held_out: Any = index_held_out(run, *found)
        taught += [stage.of(index_rows(run, *found)), *([] if held_out is None else [stage.of(held_out.rows)])]
    rows = _once(taught)
    if not len(rows):
        raise ValueError(f"no row is taught by teacher {stages[0].tag}, so there is nothing to keep of it")
    return _Filling(run, folder, rows, stages[0].alone).fill()


def _begin(folder: Path, now: MadeWith) -> None:
    if read_made_with(folder) is None:
        foreign = [path.name for path in folder.iterdir() if path.name != _LOCK]
        if foreign:
            raise ValueError(
                f"{folder} is not empty and no teacher's cache ({foreign[0]}): name another folder in teacher.cache"
            )
        write_made_with(folder, now)
    check_made_with(folder, now)


def _once(stages: list[Dataset]) -> Dataset:
    """The rows of all stages, each once."""
    seen: set[str] = set()
    chosen = []
    for rows in stages:
        numbers = []
        for number, key in enumerate(rows["key"][:]):
            if key not in seen:
                seen.add(key)
                numbers.append(number)
        chosen.append(rows.select(numbers))
    chosen = [rows for rows in chosen if len(rows)] or chosen[:1]
    return chosen[0] if len(chosen) == 1 else concatenate_datasets(chosen)


class _Rows(TorchDataset[dict[str, Any]]):
    """Rows by their numbers, several at a time; picklable for worker processes."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.rows.__getitems__(numbers)
        return found


class _Filling:
    """The rows of a cache, cut into shards, and the teacher that is asked about them."""

    def __init__(self, run: RunContext, folder: Path, rows: Dataset, stage: ResolvedStage) -> None:
        self.folder, self.rows, self.recipe = folder, rows, run.recipe
        teacher = run.teachers.of(stage)
        assert teacher is not None
        self.top_k = teacher.section.cache_logits
        self.size = run.recipe.train.per_device_train_batch_size
        self.device = processes().device
        needs: frozenset[Any] = frozenset({"student", "teacher"})
        (weights,) = run.teachers.weights_for(stage).values()
        ids = teacher.vocabulary, teacher.first_words
        device = device_of(teacher.section)
        self.pair = Pair(
            run.student, weights, needs=needs, vocabulary=ids[0], first_words=ids[1], teacher_device=device
        )
        self.collator = Collator(run.reader, {TEACHER: teacher.reading})
        if self.top_k is not None and self.top_k >= self.pair.vocabulary:
            raise ValueError(
                f"teacher.cache_logits is {self.top_k}, and {self.pair.vocabulary} ids are compared: keep fewer, or the hidden states"
            )
        keys, self.counts = rows["key"][:], rows["compared"][:]
        self.answer_bytes = bytes_per_answer(self._answers(self.collator([rows[0]]))[0])
        self.shards = plan_shards(keys, self.counts, self.answer_bytes)
        self.numbers = dict(zip(keys, range(len(keys)), strict=True))

    def fill(self) -> CacheMade:
        """Write what is missing, and the index."""
        missing = on_main(self._prepare)
        state = processes()
        own = [self.shards[number] for number in missing[state.process_index :: state.num_processes]]
        with quiet(not state.is_main_process):
            batches = progress(self._written(own), "asking the teacher", sum(len(shard.keys) for shard in own))
            for _ in batches:
                pass
        _wait_for_all()
        on_main(self._finish)
        written = sum(len(self.shards[number].keys) for number in missing)
        return CacheMade(self.folder, len(self.rows), sum(self.counts), written, on_main(self._left_out))

    def _prepare(self) -> list[int]:
        """The numbers of the shards that must be written; refused where the disk has no room for them."""
        there = [is_whole(self.folder, shard) for shard in self.shards]
        missing = [number for number, whole in enumerate(there) if not whole]
        removed = clear(self.folder, [shard for shard, whole in zip(self.shards, there, strict=True) if whole])
        if removed:
            warn(
                f"{removed} shards in {self.folder} hold rows that have changed, are gone or are damaged: they are removed"
            )
        answers = sum(sum(self.shards[number].counts) for number in missing)
        rows = sum(len(self.shards[number].keys) for number in missing)
        needed, free = answers * self.answer_bytes + rows * _ROW_BYTES, shutil.disk_usage(self.folder).free
        told = (
            f"{rows:,} of {len(self.rows):,} rows are to be written: {answers:,} answer tokens x {self.answer_bytes:,} bytes, "
            f"{_mib(needed)}; {_mib(free)} are free"
        )
        if needed > free:
            smaller = "" if self.top_k else ", or keep the largest logits alone (teacher.cache_logits: 128)"
            raise OSError(f"{self.folder}: {told}. Make room, name a folder on another disk in teacher.cache{smaller}")
        say(f"{self.folder}: {told}")
        return missing

    def _written(self, shards: list[Shard]) -> Iterator[str]:
        """Write shards; yields the key of every row that the teacher has been asked about."""
        lengths = self.rows["length"][:]
        batches = []
        for shard in shards:
            # rows of about one length together: which rows a batch has depends on the shard alone, and so do the last bits
            ordered = sorted((self.numbers[key] for key in shard.keys), key=lambda number: (lengths[number], number))
            batches.append([ordered[begin : begin + self.size] for begin in range(0, len(ordered), self.size)])
        loader: Iterator[Batch] = iter(
            DataLoader(
                _Rows(self.rows),
                batch_sampler=[batch for of_shard in batches for batch in of_shard],
                collate_fn=self.collator,
                num_workers=self.recipe.train.dataloader_num_workers,
                generator=torch.Generator().manual_seed(0),
            )
        )
        for shard, of_shard in zip(shards, batches, strict=True):
            answers: dict[str, Stored] = {}
            for _ in of_shard:
                batch = next(loader)
                answers |= zip(batch.keys, self._answers(batch), strict=True)
                yield from batch.keys
            write_shard(self.folder, shard, [answers[key] for key in shard.keys])

    @torch.no_grad()
    def _answers(self, batch: Batch) -> list[Stored]:
        """What the teacher says of each row of a batch."""
        half, train = torch.bfloat16 if self.recipe.train.bf16 else torch.float16, self.recipe.train
        moved = batch.to(self.device)
        with torch.autocast(self.device.type, half, enabled=train.bf16 or train.fp16):
            said = self.pair.teacher_says(moved)
        groups = [said] if said.first_words is None else [said, said.first_words]
        stored = [self._stored(one) for one in groups]
        whose = [
            batch.student.sample if one.answers is None else batch.student.sample[one.answers.cpu()] for one in groups
        ]
        return [self._of_row(row, stored, whose) for row in range(len(batch.keys))]

    def _of_row(self, row: int, stored: list[Stored], whose: list[Tensor]) -> Stored:
        parts = []
        for one, samples in zip(stored, whose, strict=True):
            places = (samples == row).nonzero().flatten()
            begin = int(places[0]) if len(places) else 0
            parts.append(part_of(one, slice(begin, begin + len(places))))
        together = joined(parts)
        assert together is not None
        return together

    def _stored(self, one: Compared) -> Stored:
        assert isinstance(one.teacher, FromHidden), "a live teacher was asked"
        if self.top_k is None:
            return one.teacher.hidden.cpu()
        parts = [self._largest(one, slice(begin, begin + _ROWS)) for begin in range(0, max(len(one.teacher), 1), _ROWS)]
        together = joined(parts)
        assert together is not None
        return together

    def _largest(self, one: Compared, part: slice) -> TopLogits:
        """The largest logits of some answers. Where fewer ids are compared than are kept, the first one fills up."""
        assert self.top_k is not None
        said = one.teacher.rows(part).log_softmax(dim=-1)
        kept = min(self.top_k, said.shape[1])
        values, columns = said.topk(kept, dim=-1)
        others = said.shape[1] - kept
        hidden = said.scatter(1, columns, -torch.inf).logsumexp(dim=-1)
        rest = hidden - torch.tensor(float(others)).log() if others else values[:, -1]
        fill = self.top_k - kept
        return TopLogits(
            torch.cat([values, values[:, :1].expand(-1, fill)], dim=1).cpu(),
            torch.cat([columns, columns[:, :1].expand(-1, fill)], dim=1).int().cpu(),
            rest.cpu(),
        )

    def _finish(self) -> None:
        absent = [shard.name for shard in self.shards if not (self.folder / SHARDS / shard.name).exists()]
        if absent:
            raise DataError(
                f"{self.folder}: {len(absent)} of {len(self.shards)} shards are not there, {absent[0]} first: name a folder in "
                "teacher.cache that all nodes share"
            )
        write_index(self.folder, self.shards)

    def _left_out(self) -> tuple[float, float] | None:
        """The teacher's probability on ids that are not kept: its mean over all answers, and the largest."""
        if self.top_k is None:
            return None
        store, total, largest = TeacherStore(self.folder), 0.0, 0.0
        for key in self.numbers:
            stored = store.read(key)
            assert isinstance(stored, TopLogits)
            if len(stored.rest):
                outside = _outside(stored)
                total, largest = total + outside.sum().item(), max(largest, outside.max().item())
        return total / max(sum(self.counts), 1), largest


def _outside(stored: TopLogits) -> Tensor:
    """1 − Σ of the probabilities that are kept; each id once."""
    first = torch.ones_like(stored.columns, dtype=torch.bool)
    first[:, 1:] = stored.columns[:, 1:] != stored.columns[:, :1]
    return (1 - (stored.values.double().exp() * first).sum(dim=1)).clamp(min=0)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder, which no other command fills until the block ends."""
    lock = Lock(folder / _LOCK)

    def hold() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ValueError(f"{folder} is in use: another command fills it. Wait for it, or stop it") from None

    try:
        on_main(hold)
        yield
    finally:
        if lock.is_locked:
            lock.release()


def _wait_for_all() -> None:
    """Until every process has written its shards, however long that takes."""
    if processes().num_processes > 1:
        distributed.barrier(group=distributed.new_group(backend="gloo", timeout=timedelta(days=7)))


def _mib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
