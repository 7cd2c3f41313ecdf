"""The first steps of a tiny Switch-KD run through the real command line.

PYTHONPATH=tests/lib python -m trajectory          # writes tests/lib/trajectory.json anew
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from run_files import write_run

FILE = Path(__file__).with_suffix(".json")
REMAKE = "PYTHONPATH=tests/lib python -m trajectory"
FIELDS = {"train.max_steps": "10", "train.logging_steps": "1", "train.save_steps": "10"}


def trajectory(folder: Path) -> list[dict[str, float]]:
    """Write models, data and a recipe, run `switchkd train` on it, and return the loss and its terms at every step."""
    recipe = write_run(folder)
    flags = [word for field, value in FIELDS.items() for word in (f"--{field}", value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "switchkd.cli", "train", str(recipe), *flags],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (metrics,) = (folder / "run").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [{name: line[name] for name in ("loss", "ce", "align", "switch")} for line in lines if "ce" in line]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        steps = trajectory(Path(folder))
    FILE.write_text(json.dumps({"remake": REMAKE, "steps": steps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
