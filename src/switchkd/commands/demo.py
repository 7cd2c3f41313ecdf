"""`switchkd demo`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from switchkd.commands.verb import Verb, model_libraries


@dataclass(frozen=True)
class Demo(Verb):
    """Distil a small student from the teacher that comes with switchkd, in minutes on a CPU.

    Writes a data set, trains one student by SFT and one by Switch-KD, and compares both with the teacher.

    Example: switchkd demo --seed 1
    """

    #: Of the pictures, the questions and the order of the data.
    seed: int = 0
    #: Where everything is left.
    output: Path = Path("runs/demo")

    goes_on: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Run the demo."""
        with model_libraries():
            from switchkd.demonstration import main as run_demo

        run_demo(self.seed, self.output)
        return 0
