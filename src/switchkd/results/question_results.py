"""What an evaluation found, and everything needed to judge or repeat it: one JSON file, and one line per question."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from switchkd.results.score import Score


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
        """Write `NAME.json`, and the predictions beside it as `NAME.predictions.jsonl`; both or none.

        Raises:
            ValueError: if the name does not end in `.json`.
        """
        path = Path(path)
        if path.suffix != ".json":
            raise ValueError(f"{path}: results are written as JSON, so the name must end in .json")
        path.parent.mkdir(parents=True, exist_ok=True)
        summary = asdict(self)
        lines = [json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in summary.pop("predictions")]
        predictions, summary_text = "".join(lines), json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        write_together({path.with_suffix(".predictions.jsonl"): predictions, path: summary_text})


def write_together(texts: Mapping[Path, str]) -> None:
    """Write all of these files, in this order, or none: a reader never finds half a file, and a full disk leaves what was there."""
    staged = {target: target.with_name(f".{target.name}.{os.getpid()}") for target in texts}
    try:
        for target, staging in staged.items():
            staging.write_text(texts[target], encoding="utf-8", errors="backslashreplace")
        for target, staging in staged.items():
            os.replace(staging, target)
    finally:
        for staging in staged.values():
            staging.unlink(missing_ok=True)
