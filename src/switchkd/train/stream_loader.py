"""Batches of a stream for a Trainer: which rows were skipped on the way, and where a resumed run goes on."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from switchkd.batch import AnyBatch
from switchkd.data.errors import DataError, check_bad_share
from switchkd.data.streaming import Position, RowStream, StreamedBatches
from switchkd.data.tagged import AnyCollator
from switchkd.files import write_together
from switchkd.processes import processes
from switchkd.recipe.schema import Data
from switchkd.train.stop import shielded

#: Of so many first rows the doctor and the bridge learn what the rows are like.
HEAD = 512
#: Before so many rows were looked at, as many may be unusable as of this number.
PATIENCE = 1_000
_log = logging.getLogger(__name__)


class StreamLoader:
    """One rank's batches, without end.

    Args:
        stream: the rows of all ranks.
        data: the recipe's section.
        collator: makes the batches.
        batch_size: samples of a batch.
        workers: processes that prepare batches; not more than this rank has shards.
        seed: of the order.
        report: the file that lists rows that cannot be used.
    """

    def __init__(
        self,
        stream: RowStream,
        data: Data,
        collator: AnyCollator,
        *,
        batch_size: int,
        workers: int,
        seed: int,
        report: Path,
    ) -> None:
        state = processes()
        self.stream, self.data, self.collator, self.batch_size, self.report = stream, data, collator, batch_size, report
        self._rows = stream.shuffled(
            seed=seed, buffer=data.shuffle_buffer, rank=state.process_index, ranks=state.num_processes
        )
        self.workers = min(workers, self._rows.num_shards)
        if self.workers < workers:
            _log.warning(
                "%d of %d worker processes prepare batches: a file is read by one, and this rank reads %d",
                self.workers, workers, self._rows.num_shards,
            )  # fmt: skip
        self._positions: dict[int, Position] = {}
        self._turns = self._looked = 0
        self._bad: list[str] = []

    def __str__(self) -> str:
        return f"{self.stream}, shuffled among {self.data.shuffle_buffer:,} rows"

    def __iter__(self) -> Iterator[AnyBatch]:
        batches = StreamedBatches(self._rows, self.collator, self.batch_size, self._positions, self._turns)
        loader = DataLoader(
            batches,
            batch_size=None,
            num_workers=self.workers,
            pin_memory=processes().device.type == "cuda",
            worker_init_fn=shielded(None),
            # Its own: the loader must not draw from the global one, which a resumed run has put back.
            generator=torch.Generator().manual_seed(0),
        )
        for drawn in loader:
            if drawn is None:
                continue
            if drawn.fault is not None:
                raise DataError(f"{self.stream} ends early: {drawn.fault}")
            self._turns += 1
            self._looked += drawn.rows
            self._positions[drawn.worker] = drawn.position
            self._skip(drawn.bad)
            if drawn.batch is not None:
                yield drawn.batch

    def _skip(self, bad: tuple[str, ...]) -> None:
        """Name rows that cannot be used, and raise DataError where there are too many."""
        if not bad:
            return
        for reason in bad:
            _log.warning("skipped %s", reason)
        self._bad += bad
        if processes().is_main_process:
            found: dict[str, Any] = {"looked_at": self._looked, "max_bad_fraction": self.data.max_bad_fraction}
            text = json.dumps(found | {"bad": self._bad}, indent=2, ensure_ascii=False) + "\n"
            write_together({self.report: text})
        check_bad_share(self._bad, self._looked, self.data.max_bad_fraction, at_least=PATIENCE, listed=str(self.report))

    # ---- where it is

    @staticmethod
    def file_name() -> str:
        """What a checkpoint calls this rank's place in the stream."""
        return f"stream-{processes().process_index}.json"

    def state(self) -> str:
        """The place behind the last batch that was taken."""
        positions = {worker: asdict(position) for worker, position in self._positions.items()}
        place = {"workers": self.workers, "turns": self._turns, "positions": positions}
        return json.dumps(place | {"looked_at": self._looked, "bad": self._bad})

    def go_on(self, checkpoint: Path) -> None:
        """Go on behind the last batch of a checkpoint.

        Raises:
            ValueError: it was made with other worker processes, which read other rows.
        """
        saved = json.loads((checkpoint / self.file_name()).read_text(encoding="utf-8"))
        if saved["workers"] != self.workers:
            raise ValueError(
                f"{checkpoint}: {saved['workers']} worker processes read the stream then, and {self.workers} do now, each its own "
                f"part of it: set train.dataloader_num_workers to {saved['workers']}"
            )
        self._turns, self._looked, self._bad = saved["turns"], saved["looked_at"], saved["bad"]
        self._positions = {int(worker): Position(**place) for worker, place in saved["positions"].items()}


class EpochOfStream(TrainerCallback):
    """Has a stage's epoch be the share of its steps, as it is in a run without a break.

    A stream goes on behind its last batch by itself and is not skipped through, so a resumed Trainer would count its epoch from 0.
    """

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Before the step is logged and saved."""
        state.epoch = state.global_step / state.max_steps
