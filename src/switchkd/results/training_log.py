"""What training logs, line by line: `metrics.jsonl` in each stage's folder."""

from pathlib import Path
from typing import Any

from switchkd.results.stored import read_lines


def read_training_log(path: Path) -> list[dict[str, Any]]:
    """The lines in order, each with its `step` and the numbers logged then.

    Raises:
        ValueError: naming the file, and the line that is no such object.
    """
    lines = []
    for place, line in read_lines(path, "metrics"):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ValueError(f"{place}: no metrics: expected an object with `step`")
        lines.append(line)
    return lines
