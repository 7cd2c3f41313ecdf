"""What a run and a stage of it are made of, ready to train."""

from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from transformers import ProcessorMixin

from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.data.packing import PackCollator, Packs
from switchkd.data.reader import Reader
from switchkd.data.teacher_store import TeacherStore
from switchkd.methods import Method
from switchkd.models import Pathway
from switchkd.models.teacher_head import TeacherHead
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.pair_report import PairReport
from switchkd.pairing.reading import OwnInputs, SameInputs
from switchkd.pairing.vocabulary import Ids
from switchkd.recipe.schema import Recipe, ResolvedStage
from switchkd.train.continued import Continued
from switchkd.train.held_out import HeldOut
from switchkd.train.step import DistillationStep
from switchkd.train.stream_loader import StreamLoader


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share: the student in memory goes from one to the next."""

    recipe: Recipe
    student: Pathway
    #: Its head alone where a cache has what it says and no method asks for more; None where no method has a teacher.
    teacher: Pathway | TeacherHead | None
    processor: ProcessorMixin
    #: Reads what the student reads.
    reader: Reader
    #: Of the student's weights as they were opened, and as the finished student's are saved.
    student_dtype: torch.dtype
    #: How the teacher reads it, and how the two differ; None where no method has a teacher.
    teacher_reading: SameInputs | OwnInputs | None = None
    pair_report: PairReport | None = None
    bridge: Bridge | None = None
    #: What the teacher says of every row, where the recipe names a cache.
    store: TeacherStore | None = None
    #: The run that it goes on from.
    continued: Continued | None = None

    def collator(self, method: Method) -> Collator:
        """Makes the batches of a method."""
        if "teacher" not in method.needs or self.teacher_reading is None:
            return Collator(self.reader)
        stores = {} if self.store is None else {TEACHER: self.store}
        return Collator(self.reader, {TEACHER: self.teacher_reading}, stores)

    @property
    def vocabulary(self) -> int | Ids:
        """Which ids are compared."""
        if self.pair_report:
            return self.pair_report.vocabulary
        return self.reader.ids

    @property
    def first_words(self) -> Ids | None:
        """Which ids are compared where one model's token has a space before the word that the other's has not."""
        return self.pair_report.first_words if self.pair_report else None


@dataclass(frozen=True)
class StageContext:
    """One stage, ready to run."""

    run: RunContext
    stage: ResolvedStage
    rows: Dataset
    step: DistillationStep
    collator: Collator
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
    def collate(self) -> Collator | PackCollator:
        """Makes a batch of what is drawn."""
        return self.collator if self.packs is None else PackCollator(self.collator)

    @property
    def method(self) -> Method:
        """What is distilled."""
        return self.step.method

    @property
    def pair(self) -> Pair:
        """Student and teacher."""
        return self.step.pair
