"""What a study measured: each cell's record when it ends, and `study.json` for all of them."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from switchkd.files import write_together
from switchkd.results.stored import build, read_json, to_json

#: One seed's outcome of one arm: picture (sample of the data) → kind → (points of its answers, questions).
Outcome = dict[str, dict[str, tuple[float, int]]]


@dataclass(frozen=True)
class CellRecord:
    """What one finished cell took: `SEED.json` next to its folder."""

    arm: str
    seed: int
    #: Samples trained on; None is all.
    rows: int | None
    code: int
    #: Of the last process alone where `resumed`.
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    resumed: bool
    device: str
    versions: dict[str, str]
    recipe: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file, which marks the cell as finished."""
        write_together({path: to_json(asdict(self))})

    @classmethod
    def load(cls, path: Path) -> "CellRecord":
        """Read it again.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        return build(cls, read_json(path, "a cell's record"), str(path), "record of a cell")


@dataclass(frozen=True)
class CellResult:
    """One cell in `study.json`: its record without the recipe, and what its student scored."""

    arm: str
    seed: int
    rows: int | None
    #: Of the run, relative to the study's output.
    folder: str
    #: Mean over kinds in percent, or over all questions where none names its kind.
    score: float
    kinds: dict[str, float]
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    resumed: bool
    device: str = "cpu"
    code: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    data_fingerprint: str = ""


@dataclass(frozen=True)
class TeacherResult:
    """What a teacher scored on the test questions of one seed."""

    teacher: str
    seed: int
    folder: str
    score: float
    kinds: dict[str, float]
    data_fingerprint: str = ""


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one size of data, over all seeds that are finished. Accuracies are means over kinds, in percent."""

    arm: str
    rows: int | None
    seeds: int
    mean: float
    #: Standard deviation over the seeds, n − 1 in the denominator; None for a single seed.
    sd: float | None
    #: Mean over the seeds of the difference to the baseline, and its confidence interval; None for the baseline itself.
    difference: float | None
    low: float | None
    high: float | None
    #: The difference of every seed that both have.
    differences: tuple[float, ...]
    #: Wall-clock and CPU seconds of a cell, training and evaluation, mean over the cells that were not interrupted.
    seconds: float | None
    cpu_seconds: float | None
    #: The same seconds by the baseline's: CPU seconds where the cells ran on a CPU, wall-clock on a GPU.
    cost: float | None


@dataclass(frozen=True)
class StudyResults:
    """A study as far as it is finished: methods × seeds × sizes of data."""

    name: str
    baseline: str
    #: Arm → the arm it is compared with; `baseline` for those that are not in here.
    baselines: dict[str, str]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[int, ...]
    #: How many cells it is to have.
    planned: int
    cells: tuple[CellResult, ...]
    teachers: tuple[TeacherResult, ...]
    table: tuple[ArmSummary, ...]

    @property
    def sizes(self) -> list[int | None]:
        """Sizes of the training data, the largest first."""
        return sorted({cell.rows for cell in self.cells}, key=lambda rows: float("-inf") if rows is None else -rows)

    @property
    def teacher_scores(self) -> dict[str, tuple[float, ...]]:
        """Teacher → its score on each seed's test questions."""
        names = dict.fromkeys(teacher.teacher for teacher in self.teachers)
        return {name: tuple(one.score for one in self.teachers if one.teacher == name) for name in names}

    def against(self, arm: str) -> str:
        """The arm that `arm` is compared with."""
        return self.baselines.get(arm, self.baseline)

    def largest(self) -> tuple[int | None, int]:
        """The largest size of data, and of its seeds the first of those with the most arms."""
        rows = self.sizes[0]
        arms = Counter(cell.seed for cell in self.cells if cell.rows == rows)
        return rows, min(seed for seed in arms if arms[seed] == max(arms.values()))

    @classmethod
    def load(cls, path: Path) -> "StudyResults":
        """Read `study.json`.

        Raises:
            ValueError: naming the file and what is wrong with it.
        """
        study = build(cls, read_json(path, "a study"), str(path), "study that this version can read")
        mentioned = {cell.arm for cell in study.cells} | {line.arm for line in study.table}
        mentioned |= {study.baseline, *study.baselines.values()}
        if unknown := sorted(mentioned - set(study.arms)):
            raise ValueError(f"{path}: holds no study that this version can read: {unknown[0]} is not among its arms")
        return study

    def to_json(self) -> str:
        """The text of `study.json`."""
        return to_json(asdict(self))
