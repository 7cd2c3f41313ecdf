"""What a report is made of: plain values, whoever computed or wrote them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from switchkd.results.intervals import Interval
from switchkd.results.question_results import Prediction, Results
from switchkd.results.study_results import StudyResults

#: Step → value, of one logged term.
Curve = list[tuple[float, float]]
#: What the average over the public benchmarks is called.
TEN = "average of ten"
#: The pathways, in the order in which they are shown.
PATHWAYS = ("teacher", "student", "switch")


@dataclass(frozen=True)
class Agreement:
    """How near a pathway's next-token distribution is to the teacher's: means over the answer tokens, temperature 1."""

    #: Share of the answer tokens at which both have the same first choice.
    same_first_percent: float
    #: KL(teacher ‖ pathway).
    forward_kl_nats: float
    #: KL(pathway ‖ teacher).
    reverse_kl_nats: float


@dataclass(frozen=True)
class Probe:
    """What was computed for the report with a run's student and teacher, on questions with their expected answers."""

    questions: int = 0
    #: Answer tokens of these questions that can be compared.
    tokens: int = 0
    #: Of the knee; None: the whole vocabulary.
    window: int | None = None
    min_k: int = 0
    #: Pathway → the knee k at each of the tokens.
    knees: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: `student`, `switch` → how near it is to the teacher.
    agreement: Mapping[str, Agreement] = field(default_factory=dict)
    #: Question → pathway → attention of its answer to each place of the (first) image, row by row.
    attention: Mapping[str, Mapping[str, list[list[float]]]] = field(default_factory=dict)
    #: What could not be computed, and what to do about it; one sentence each.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Model:
    """One column of a comparison: a run, or a model that was only evaluated."""

    name: str
    #: Where it was read from, as it was given.
    where: str
    #: The resolved recipe as plain values.
    recipe: Mapping[str, Any] | None = None
    #: `results.json`, where it was evaluated.
    results: Results | None = None
    #: Question → answer; empty where the answers were not kept.
    answers: Mapping[str, Prediction] = field(default_factory=dict)
    #: Benchmark → percent, of `benchmarks.json`, and `TEN`.
    benchmarks: Mapping[str, float] | None = None
    #: Logged term → its curve over all stages; steps go on where the stage before ended.
    curves: Mapping[str, Curve] = field(default_factory=dict)
    #: (stage, its last step counted over all stages).
    stages: tuple[tuple[str, float], ...] = ()
    #: Cost, what is known of it: `train seconds`, `steps`, `cpu seconds`, `peak memory MiB` …
    cost: Mapping[str, float] = field(default_factory=dict)
    probe: Probe | None = None
    #: Why one of these is missing, one sentence each: part of the page → sentence.
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str | None:
        """The method of the run's last stage."""
        if self.recipe is None:
            return None
        stages = self.recipe.get("stages") or [{}]
        method = stages[-1].get("method") or self.recipe.get("method") or {}
        return str(method.get("name")) if method.get("name") else None


@dataclass(frozen=True)
class Evidence:
    """Everything that a page shows."""

    models: tuple[Model, ...]
    #: The name of the model that differences are taken to; None where there is but one.
    baseline: str | None
    study: StudyResults | None = None
    #: Of a study: size of data and seed whose runs are shown one by one, among `models`.
    shown: tuple[int | None, int] | None = None
    #: Question → its (first) image as PNG or WebP.
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    #: The questions whose attention is shown.
    chosen: tuple[str, ...] = ()
    #: Model → kind → share of the answers that equal the teacher's, in percent; `None` as a kind: of all.
    same_answers: Mapping[str, Mapping[str | None, float]] = field(default_factory=dict)
    #: Model → kind (or all) → the interval of the difference in these shares to the baseline's.
    same_intervals: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    #: Why the test questions could not be read, where they could not.
    unread: str | None = None
    #: Whether anything was to be computed with the models: `--questions 0` leaves it out.
    probed: bool = True
