"""Commands around a recipe: `demo`, `train`, `doctor`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro.conf import Positional, arg

from switchkd.commands.base import RecipeFile, Verb, fail, load_recipe, say

if TYPE_CHECKING:
    from switchkd.train.recipe import Recipe


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

    def run(self, fields: Sequence[str]) -> int:
        """Run the demo."""
        from switchkd.demo import main as run_demo

        run_demo(self.seed, self.output)
        return 0


@dataclass(frozen=True)
class Train(Verb):
    """Train the student of a recipe.

    Any field of the recipe can be changed behind it with --section.field value; --dry-run shows all of them.

    Example: switchkd train recipes/tiny.yaml --train.output runs/mine --train.learning-rate 5e-4 --method.switch 0
    """

    #: The recipe; its relative paths are relative to the current directory.
    recipe: RecipeFile
    #: Check the recipe, print it with every default and the memory it needs, and stop; needs no weights and no data.
    dry_run: bool = False
    #: Go on from the last checkpoint in the recipe's output folder, if there is one.
    resume: bool = True

    takes_fields: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Train, or show what would be trained."""
        recipe = load_recipe(self.recipe, fields)
        if self.dry_run:
            show(recipe)
            return 0
        from switchkd.pipeline import run

        student = run(recipe, resume=self.resume)
        say(f"the student is in {student}")
        return 0


@dataclass(frozen=True)
class Doctor(Verb):
    """Find what would train silently wrong, before hours are spent: blind models, empty masks, too little memory.

    Of a pair that has no recipe yet it says, without loading weights, what fits, what needs a bridge and what is refused.

    Example: switchkd doctor recipes/tiny.yaml --train.per-device-train-batch-size 32

    Example: switchkd doctor --teacher Qwen/Qwen2.5-VL-7B-Instruct --student checkpoints/mine
    """

    #: The recipe; fields can be changed behind it with --section.field value.
    recipe: Annotated[Positional[Path | None], arg(metavar="RECIPE.yaml")] = None
    #: Instead of a recipe: a checkpoint directory, or a name on the Hugging Face hub.
    teacher: str | None = None
    #: The same for the student.
    student: str | None = None
    #: Also write the findings as JSON to this file; `-` is the output stream.
    json: Path | None = None

    takes_fields: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Print the findings, and samples or a proposal; 1 if the recipe, or the pair, must not be trained like this."""
        from switchkd.doctor import examine, examine_pair

        if self.recipe is None and self.teacher is not None and self.student is not None and not fields:
            findings, proposal = examine_pair(self.student, self.teacher)
            if findings.ok and str(self.json) != "-":
                print(proposal, end="")
        elif self.recipe is None or self.teacher is not None or self.student is not None:
            return fail("doctor takes a recipe, or --teacher and --student", 2)
        else:
            findings = examine(load_recipe(self.recipe, fields))
        findings.print()
        if self.json is not None:
            findings.write_json(self.json)
        return 0 if findings.ok else 1


def show(recipe: "Recipe") -> None:
    """Print a recipe with every default, and what its stages would do and need."""
    import yaml

    from switchkd.train.memory import forecast
    from switchkd.train.recipe import recipe_to_dict

    print(yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True), end="")
    for number, stage in enumerate(recipe.resolved_stages(), start=1):
        length = f"{stage.max_steps} steps" if (stage.max_steps or 0) > 0 else f"{stage.num_train_epochs:g} epochs"
        assert stage.method is not None
        say(
            f"stage {number}, {stage.name}: {stage.method.name} trains {', '.join(stage.train)} for {length} on {stage.data}"
        )
        say(f"stage {number}, memory: {forecast(recipe, stage)}")
    say("the recipe is valid; nothing was trained (--dry-run)")
