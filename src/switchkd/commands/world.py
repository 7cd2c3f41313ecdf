"""`switchkd world`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_data
from switchkd.commands.verb import Verb, model_libraries, say, warn


@dataclass(frozen=True)
class World(Verb):
    """Make a world of your photographs: pictures with questions, a teacher that sees them, and students to train.

    Pictures are grids of labelled photographs, questions are about their classes and places. Photographs for training, validation and
    testing are different ones. What is there already is not made again.

    Example: switchkd world photos --output runs/photos

    Example: switchkd world OWNER/NAME --output runs/photos --scale gpu
    """

    #: A folder with a folder of pictures for each class, Parquet files with image and label, or a data set of the hub.
    photographs: Annotated[Positional[str], arg(metavar="PHOTOGRAPHS")]
    #: Where everything is left.
    output: Path = Path("runs/photos")
    #: Pictures to train students on; each has ten questions.
    train: int = 1500
    #: Pictures to look at while they learn.
    validation: int = 20
    #: Pictures to ask about in the end.
    test: int = 60
    #: Of the pictures, the questions and the models.
    seed: int = 0
    #: How large the models are: cpu takes half an hour of one core, gpu minutes of a large one.
    scale: Literal["cpu", "gpu"] = "cpu"

    goes_on: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Make it, and say what it is worth."""
        require_data(self.photographs)
        if self.train < 1 or self.test < 1 or self.validation < 0:
            raise ValueError(
                f"--train and --test must be at least 1 and --validation 0, got {self.train}, {self.test} and {self.validation}"
            )
        with model_libraries():
            from switchkd.console import harmless
            from switchkd.pretraining.photo_world_report import make_world

        report = make_world(
            self.photographs,
            self.output,
            train=self.train,
            validation=self.validation,
            test=self.test,
            seed=self.seed,
            scale=self.scale,
        )
        print(harmless("\n".join(report.lines())))
        for problem in report.problems():
            warn(f"warning: {problem}")
        say(f"data: {self.output}/data, models: {self.output}/teacher, student and student-other")
        return 0
