"""What an evaluation found, and everything needed to judge or repeat it: one JSON file, and one line per question."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from switchkd.evaluate.score import Score


@dataclass(frozen=True)
class Prediction:
    """One question, what was expected, what the model said, and whether that is right."""

    id: str
    kind: str | None
    question: str
    expected: str
    got: str
    right: bool
    truncated: bool


@dataclass(frozen=True)
class Results:
    """The result of one model on one data set."""

    model: str
    data: str
    #: SHA-256 over ids, messages, kinds and image bytes: equal where the same was asked.
    data_fingerprint: str
    rows: int
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
    predictions: tuple[Prediction, ...]

    def percentages(self) -> dict[str, float]:
        """Accuracy of each kind, then the mean over the kinds (where there are any) and over all questions."""
        percentages = {kind: score.accuracy_percent for kind, score in self.kinds.items()}
        if self.mean_over_kinds_percent is not None:
            percentages["mean of kinds"] = self.mean_over_kinds_percent
        return percentages | {"all questions": self.accuracy_percent}

    def save(self, path: str | Path) -> None:
        """Write `NAME.json`, and the predictions beside it as `NAME.predictions.jsonl`.

        Raises:
            ValueError: if the name does not end in `.json`.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"{path}: results are written as JSON, so the name must end in .json")
        path.parent.mkdir(parents=True, exist_ok=True)
        summary = asdict(self)
        lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in summary.pop("predictions")]
        _write(path.with_suffix(".predictions.jsonl"), "".join(lines))
        _write(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """All or nothing: a reader never finds half a file."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(staging, path)
