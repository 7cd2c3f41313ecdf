"""The result of an evaluation, and everything needed to judge or repeat it: one JSON file, and one line per question."""

import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from switchkd.files import write_together
from switchkd.results.score import Interval, Score
from switchkd.results.stored import build, read_json, read_lines, to_json, to_lines

#: What the mean over the kinds is called, and the one over all questions.
MEAN = "mean of kinds"
OVERALL = "all questions"


@dataclass(frozen=True)
class Prediction:
    """One question, the expected answer, the model's answer `got`, and whether that is right."""

    id: str
    kind: str | None
    question: str
    expected: str
    got: str
    right: bool
    truncated: bool
    #: Files of the pictures that it is about; those inside the data have none.
    pictures: tuple[str, ...] = ()
    #: A digest of these pictures, or the id of the row where there are none. Empty in results of earlier versions.
    about: str = ""
    #: All answers that are right, where the data name more than `expected`.
    accepted: tuple[str, ...] = ()
    #: Of `results/metrics.py`, and what the answer counts by it; None: 1 where it is right, else 0.
    metric: str = "exact"
    score: float | None = None

    @property
    def points(self) -> float:
        """What the answer counts: from 0 to 1, by cider to 10."""
        return float(self.right) if self.score is None else self.score

    @property
    def references(self) -> tuple[str, ...]:
        """What the answer is compared with."""
        return self.accepted or (self.expected,)

    @property
    def picture_key(self) -> str:
        """The same for questions about the same pictures, or of one row."""
        return self.about or re.sub(r"/\d+(#\d+)?$", "", self.id)


@dataclass(frozen=True)
class Skipped:
    """A row, or one question of a row, that could not be asked, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Results:
    """The result of one model on one data set."""

    model: str
    data: str
    #: SHA-256 over ids, messages, kinds and image bytes: equal where the same was asked.
    data_fingerprint: str
    #: Of the data, those that could not be asked included.
    rows: int
    #: What was asked: everything below counts these.
    questions: int
    right: int
    #: Over all questions.
    accuracy_percent: float
    kinds: dict[str, Score]
    #: The plain mean of the kinds' accuracies; None where no question names its kind.
    mean_over_kinds_percent: float | None
    questions_without_kind: int
    #: Answers that were not finished after max_new_tokens.
    truncated: int
    generation: dict[str, Any]
    #: Pillow and torchvision resize differently, so the backend belongs to the result.
    image_backend: str
    device: str
    dtype: str
    versions: dict[str, str]
    seconds: float
    #: Rows of which something could not be asked; and what.
    bad_rows: int = 0
    skipped: tuple[Skipped, ...] = ()
    #: What the checkpoint's generation config says and decoding did not follow: see `generation`.
    generation_set_aside: dict[str, Any] = field(default_factory=dict)
    #: How many questions were scored by which metric; empty: all by exact match.
    metrics: dict[str, int] = field(default_factory=dict)
    #: Of each kind, of the mean of kinds and over all questions.
    intervals_percent: dict[str, Interval] = field(default_factory=dict)
    #: Empty where the file with them was not kept.
    predictions: tuple[Prediction, ...] = ()

    @property
    def score(self) -> float:
        """The mean over kinds in percent, or over all questions where none names its kind."""
        return self.accuracy_percent if self.mean_over_kinds_percent is None else self.mean_over_kinds_percent

    @property
    def scored_by(self) -> str:
        """The metrics in words, the most used first."""
        counts = self.metrics or {"exact": self.questions}
        ordered = sorted(counts.items(), key=lambda entry: -entry[1])
        return ", ".join(metric if len(ordered) == 1 else f"{metric} ({count:,})" for metric, count in ordered)

    @property
    def heading(self) -> str:
        """What its percentages are, as the title of a table."""
        by = self.scored_by
        return "Exact match in percent" if by == "exact" else f"Score in percent, by the metric {by}"

    def scored_like(self, other: "Results") -> bool:
        """Whether the questions that both were asked were scored by the same metrics, as far as the two say it."""
        metrics = {answer.id: answer.metric for answer in other.predictions}
        one, two = (result.metrics or {"exact": result.questions} for result in (self, other))
        return one.keys() == two.keys() and all(
            metrics.get(answer.id, answer.metric) == answer.metric for answer in self.predictions
        )

    def wrong(self, count: int) -> list[Prediction]:
        """The answers with the fewest points, of different kinds first; fewer where fewer are wrong."""
        worst = sorted((one for one in self.predictions if one.points < 1), key=lambda one: one.points)
        of_kinds = {one.kind: one for one in reversed(worst)}
        first = [one for one in worst if of_kinds[one.kind] is one]
        return [*first, *(one for one in worst if of_kinds[one.kind] is not one)][:count]

    def percentages(self) -> dict[str, float]:
        """Accuracy of each kind, then the mean over the kinds (where there are any) and over all questions."""
        percentages = {kind: score.accuracy_percent for kind, score in self.kinds.items()}
        if self.mean_over_kinds_percent is not None:
            percentages[MEAN] = self.mean_over_kinds_percent
        return percentages | {OVERALL: self.accuracy_percent}

    def save(self, path: str | Path) -> None:
        """Write `NAME.json`, and the predictions as `NAME.predictions.jsonl`; both or none.

        Raises:
            ValueError: if the name does not end in `.json`.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"{path}: results are written as JSON, so the name must end in .json")
        summary = asdict(self)
        del summary["predictions"]
        write_together({predictions_path(path): to_lines(self.predictions), path: to_json(summary)})

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read `NAME.json`, and the predictions where they were kept.

        Raises:
            ValueError: naming the file, the line where it is one, and what is wrong with it.
        """
        path, lines = Path(path), predictions_path(Path(path))
        results = build(cls, read_json(path, "results"), str(path), "results of an evaluation")
        if not lines.exists():
            return results
        read = read_lines(lines, "predictions")
        predictions = tuple(build(Prediction, line, place, "prediction") for place, line in read)
        return replace(results, predictions=predictions)


def predictions_path(path: Path) -> Path:
    """Where the predictions of the results in `path` are."""
    return path.with_suffix(".predictions.jsonl")
