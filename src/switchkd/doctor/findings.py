"""What the doctor found, as data, as a table and as coloured text."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from switchkd.console import TOLD, is_quiet, say, terminal

Level = Literal["ok", "warning", "failed"]
#: What a piece of a sample is to the loss: only answers carry it.
Kind = Literal["prompt", "image", "answer"]
_LEVELS = {"ok": "green", "warning": "yellow", "failed": "bold red"}
_COUNTED: dict[Level, str] = {"ok": "fine", "warning": "to look at", "failed": "failed"}
#: What is told of a run where all is well.
_TOLD = ("answer mask", "memory")
_KINDS = {"prompt": "dim", "image": "cyan", "answer": "bold green"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Level
    check: str
    detail: str


@dataclass(frozen=True)
class Sample:
    """A row as one of the models reads it, piece by piece; a run of image tokens is one piece, `<image ×729>`."""

    name: str
    pieces: list[tuple[Kind, str]]

    def text(self) -> Text:
        """Answers in green and between ⟦ ⟧, so that they can be told without colours too."""
        shown = [(f"⟦{text}⟧" if kind == "answer" else text, _KINDS[kind]) for kind, text in self.pieces]
        return Text.assemble((f"{self.name}\n", "bold"), *shown)


@dataclass
class Findings:
    """All that was found about a recipe."""

    lines: list[Finding] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing failed; warnings pass."""
        return all(line.level != "failed" for line in self.lines)

    def add(self, other: "Findings", *, stage: str) -> None:
        """Take over what was found about a stage, under its name."""
        self.lines += [Finding(line.level, f"{stage}: {line.check}", line.detail) for line in other.lines]
        self.samples += [Sample(f"{stage}: {sample.name}", sample.pieces) for sample in other.samples]

    def print(self) -> None:
        """Write the samples and the table to the error stream: what is dim or cyan is read, what is green is learned.

        With --quiet only the table.
        """
        console = terminal(stderr=True, width=160)
        for sample in () if is_quiet() else self.samples:
            console.print(sample.text(), end="\n\n")
        console.print(_table(self.lines))

    def tell(self) -> None:
        """Two lines to the error stream where all is well, else what is not, too; every finding goes to the run's log."""
        levels = Counter(line.level for line in self.lines)
        details = {line.check: line.detail for line in self.lines}
        found = [name for level, name in _COUNTED.items() if levels[level] for name in [f"{levels[level]} {name}"]]
        for line in self.lines:
            TOLD.info("doctor: %s: %s: %s", line.level, line.check, line.detail)
        say(f"doctor: {len(self.lines)} checks: {', '.join(found)}")
        known = [details[name] for name in _TOLD if name in details]
        say(f"doctor: {'; '.join(known)}" if known else "doctor: answers and memory were not looked at")
        if bad := [line for line in self.lines if line.level != "ok"]:
            terminal(stderr=True, width=160).print(_table(bad))

    def to_dict(self) -> dict[str, Any]:
        """As plain values: `ok`, `findings` and `samples`."""
        samples = [{"name": sample.name, "pieces": [list(piece) for piece in sample.pieces]} for sample in self.samples]
        return {"ok": self.ok, "findings": [asdict(line) for line in self.lines], "samples": samples}

    def raise_if_failed(self) -> None:
        """Raise ValueError with everything that failed."""
        if failed := [f"{line.check}: {line.detail}" for line in self.lines if line.level == "failed"]:
            raise ValueError("the doctor refuses to train: " + "; ".join(failed))


def _table(lines: list[Finding]) -> Table:
    table = Table(box=None, header_style="bold")
    for heading in ("", "check", "found"):
        table.add_column(heading)
    for line in lines:
        table.add_row(Text(line.level, style=_LEVELS[line.level]), Text(line.check), Text(line.detail))
    return table


def unopened(error: Exception) -> Findings:
    """What there is to say where a recipe cannot even be opened."""
    return Findings([Finding("failed", "can be opened", str(error))])
