"""What training logs, line by line: `metrics.jsonl` in each stage's folder."""

from pathlib import Path
from typing import Any

from switchkd.results.stored import UnfinishedLineError, read_lines


def read_training_log(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """The lines in order, each with its `step` and the numbers logged then; and a note where the last one was not written to its end.

    Raises:
        ValueError: naming the file, and the line that is no such object.
    """
    lines = []
    try:
        for place, line in read_lines(path, "metrics"):
            if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                raise ValueError(f"{place}: no metrics: expected an object with `step`")
            lines.append(line)
    except UnfinishedLineError:
        return lines, f"the last line of {path} was not written to its end, as where a run is killed: it is left out"
    return lines, None
