"""What the benchmarks say of a model: one JSON file (documented in docs/benchmarks.md), and one line for each answer beside it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from switchkd.results.question_results import write_together
from switchkd.results.ten_way_mean import TEN, ten_way_mean


@dataclass(frozen=True)
class Given:
    """One answer of one benchmark. `row` names the file and the row, from 0."""

    benchmark: str
    row: str
    prompt: str
    answer: str
    truncated: bool


@dataclass(frozen=True)
class BenchmarkResult:
    """The result on one benchmark."""

    title: str
    #: In `unit`: "percent", or "points" for MME, where it is the perception score.
    score: float
    unit: str
    #: What the score can reach: 100 for all but MME, where it is 200 for each perception category of the data (2000).
    out_of: float
    #: 100 · score / out_of: what the average is over.
    percent: float
    #: Rows, all of which were asked and scored; and those of the published split.
    samples: int
    published_samples: int
    #: Answers that were not finished after max_new_tokens.
    truncated: int
    #: Answers from which the parser read nothing, where it has a rule for them (MMMU: a random letter; POPE: wrong); else None.
    unparsable: int | None
    #: Everything that the task measures, by lmms-eval's names, as it gives them.
    metrics: dict[str, float]
    #: The prompt of the first row, and the settings that it came from.
    prompt: str
    prompt_settings: dict[str, Any]
    max_new_tokens: int
    data: str
    #: SHA-256 of prompts and image bytes: equal where the same was asked.
    data_fingerprint: str
    paper: str
    seconds: float


@dataclass(frozen=True)
class BenchmarkResults:
    """The result of one model on some or all of the ten benchmarks."""

    model: str
    benchmarks: dict[str, BenchmarkResult]
    #: The mean of the ten percentages; None where not all ten were asked.
    average: float | None
    #: Whether every benchmark had as many rows as its published split: only then can the figures be compared with published ones.
    complete: bool
    generation: dict[str, Any]
    #: Pillow and torchvision resize differently, so the backend belongs to the result.
    image_backend: str
    device: str
    dtype: str
    versions: dict[str, str]
    seconds: float
    given: tuple[Given, ...]

    def save(self, path: Path) -> None:
        """Write `NAME.json`, and the answers beside it as `NAME.answers.jsonl`; both or none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        summary = asdict(self)
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in summary.pop("given")]
        write_together(
            {answers_path(path): "".join(lines), path: json.dumps(summary, indent=2, ensure_ascii=False) + "\n"}
        )


def answers_path(path: Path) -> Path:
    """Where the answers of the results in `path` are."""
    return path.with_suffix(".answers.jsonl")


def average(results: Mapping[str, BenchmarkResult]) -> float | None:
    """The ten-way mean, if all ten are there."""
    percents = {name: result.percent for name, result in results.items()}
    return ten_way_mean(percents) if set(percents) == set(TEN) else None


def table(results: BenchmarkResults) -> Table:
    """The results for a terminal: score, percent, rows, and what went wrong with answers."""
    shown = Table(title=results.model, title_justify="left")
    shown.add_column("benchmark")
    for column in ("score", "%", "rows", "cut", "unparsable"):
        shown.add_column(column, justify="right")
    for result in results.benchmarks.values():
        points = f"{result.score:.1f} / {result.out_of:.0f}" if result.unit == "points" else f"{result.score:.1f}"
        other = "" if result.samples == result.published_samples else f" of {result.published_samples}"
        unparsable = "" if result.unparsable is None else str(result.unparsable)
        shown.add_row(
            result.title, points, f"{result.percent:.1f}", f"{result.samples}{other}", str(result.truncated), unparsable
        )
    if results.average is not None:
        shown.add_section()
        shown.add_row("average of ten", "", f"{results.average:.1f}", "", "", "")
    return shown
