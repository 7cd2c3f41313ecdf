"""What a run and a stage of it are made of, ready to train."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import ProcessorMixin

from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.data.packing import PackCollator, Packs
from switchkd.data.reader import Reader
from switchkd.data.tagged import AnyCollator, TaggedCollator, taught_by
from switchkd.methods import Method
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.recipe.schema import Recipe, ResolvedStage
from switchkd.train.continued import Continued
from switchkd.train.held_out import HeldOut
from switchkd.train.open_teacher import KnownTeacher
from switchkd.train.step import DistillationStep
from switchkd.train.stream_loader import StreamLoader
from switchkd.train.teachers import Teachers


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share: the student in memory goes from one to the next."""

    recipe: Recipe
    student: Pathway
    teachers: Teachers
    processor: ProcessorMixin
    #: Reads what the student reads.
    reader: Reader
    #: Of the student's weights as they were opened, and as the finished student's are saved.
    student_dtype: torch.dtype
    #: The run that it goes on from.
    continued: Continued | None = None

    def collator(self, stage: ResolvedStage) -> AnyCollator:
        """Makes the batches of a stage."""
        if stage.tagged:
            return TaggedCollator({tag: self.collator_of(known) for tag, known in self.teachers.by_tag(stage).items()})
        teacher = self.teachers.of(stage)
        return Collator(self.reader) if teacher is None else self.collator_of(teacher)

    def collator_of(self, teacher: KnownTeacher) -> Collator:
        """Makes batches of rows that this one teaches."""
        stores = {} if teacher.store is None else {TEACHER: teacher.store}
        return Collator(self.reader, {TEACHER: teacher.reading}, stores)


@dataclass(frozen=True)
class StageContext:
    """One stage, ready to run."""

    run: RunContext
    stage: ResolvedStage
    rows: Dataset
    step: DistillationStep
    collator: AnyCollator
    directory: Path
    #: What is measured while it trains.
    held_out: HeldOut | None = None
    #: The rows as they are packed; None where each has a row of its own.
    packs: Packs | None = None
    #: Where the rows come from, of which `rows` are the first alone; None where `rows` are all.
    stream: StreamLoader | None = None

    @property
    def drawn(self) -> Dataset | Packs:
        """What batches are drawn from: rows, or packed rows."""
        return self.rows if self.packs is None else self.packs

    @property
    def told_rows(self) -> str:
        """What is trained on, for a reader."""
        return str(self.stream or self.packs or f"{len(self.rows)} rows")

    @property
    def collate(self) -> AnyCollator | PackCollator:
        """Makes a batch of what is drawn."""
        return self.collator if self.packs is None else PackCollator(self.collator)

    @property
    def teacher(self) -> KnownTeacher | None:
        """What is known of the teacher; None where the method has none, or each row one of several."""
        return self.run.teachers.of(self.stage)

    @property
    def by_teacher(self) -> "dict[str, StageContext]":
        """Tag → the stage with this teacher, and the rows that it teaches, alone; itself where one teaches all rows, or none does."""
        if not isinstance(self.collator, TaggedCollator):
            return {TEACHER: self}
        parts = {}
        for tag, pair in self.step.pairs.items():
            step = DistillationStep(pair, self.method, loss=self.step.loss)
            collator, rows = self.collator.collators[tag], taught_by(self.rows, tag)
            stage = self.stage.by_teacher[tag]
            parts[tag] = replace(self, stage=stage, rows=rows, step=step, collator=collator, held_out=None, packs=None)
        return parts

    @property
    def method(self) -> Method:
        """What is distilled."""
        return self.step.method

    @property
    def pair(self) -> Pair:
        """Student and teacher; of several teachers by tags the first."""
        return self.step.pair
