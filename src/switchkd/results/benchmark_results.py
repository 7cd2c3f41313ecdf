"""What the benchmarks say of a model: one JSON file (documented in docs/benchmarks.md), and one line for each answer in a second file."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from switchkd.files import write_together
from switchkd.results.stored import build, read_json, read_lines, to_json, to_lines


@dataclass(frozen=True)
class Given:
    """One answer of one benchmark. `row` names the file and the sample's number in it, from 0."""

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
    max_score: float = field(metadata={"stored": "out_of"})
    #: 100 · score / max_score: what the average is over.
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
    #: The prompt of the first sample, and the settings that it came from.
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
    """The result of one model on some or all of the benchmarks."""

    model: str
    benchmarks: dict[str, BenchmarkResult]
    #: The mean of the ten percentages, whatever else was asked; None where not all ten were.
    average: float | None
    #: Whether every benchmark had as many samples as its published split: only then can the figures be compared with published ones.
    complete: bool
    generation: dict[str, Any]
    #: Pillow and torchvision resize differently, so the backend belongs to the result.
    image_backend: str
    device: str
    dtype: str
    versions: dict[str, str]
    seconds: float
    #: What the checkpoint's generation config says and decoding did not follow: see `generation`.
    generation_set_aside: dict[str, Any] = field(default_factory=dict)
    #: Empty where the file with them was not kept.
    given: tuple[Given, ...] = ()

    def save(self, path: Path) -> None:
        """Write `NAME.json`, and the answers as `NAME.answers.jsonl`; both or none."""
        summary = asdict(self)
        del summary["given"]
        for result in summary["benchmarks"].values():
            result["out_of"] = result.pop("max_score")
        write_together({answers_path(path): to_lines(self.given), path: to_json(summary)})

    @classmethod
    def load(cls, path: Path) -> "BenchmarkResults":
        """Read `NAME.json`, and the answers where they were kept.

        Raises:
            ValueError: naming the file, the line where it is one, and what is wrong with it.
        """
        what = "results of the benchmarks"
        results = build(cls, read_json(path, what), str(path), what)
        if not answers_path(path).exists():
            return results
        read = read_lines(answers_path(path), "answers")
        return replace(results, given=tuple(build(Given, line, place, "answer") for place, line in read))


def answers_path(path: Path) -> Path:
    """Where the answers of the results in `path` are."""
    return path.with_suffix(".answers.jsonl")


def table(results: BenchmarkResults) -> Table:
    """The results for a terminal: score, percent, rows, and what went wrong with answers."""
    shown = Table(title=results.model, title_justify="left")
    shown.add_column("benchmark")
    for column in ("score", "%", "rows", "cut", "unparsable"):
        shown.add_column(column, justify="right")
    for result in results.benchmarks.values():
        points = f"{result.score:.1f} / {result.max_score:.0f}" if result.unit == "points" else f"{result.score:.1f}"
        other = "" if result.samples == result.published_samples else f" of {result.published_samples}"
        unparsable = "" if result.unparsable is None else str(result.unparsable)
        shown.add_row(
            result.title, points, f"{result.percent:.1f}", f"{result.samples}{other}", str(result.truncated), unparsable
        )
    if results.average is not None:
        shown.add_section()
        shown.add_row("average of ten", "", f"{results.average:.1f}", "", "", "")
    return shown
