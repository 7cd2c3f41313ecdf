"""`switchkd train`."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_parts
from switchkd.commands.verb import Verb, fail, load_recipe, model_libraries, print_json, say

if TYPE_CHECKING:
    from switchkd.recipe.schema import Recipe


@dataclass(frozen=True)
class Train(Verb):
    """Train the student of a recipe.

    Any field of the recipe can be changed behind it with --section.field value; --fields lists all of them.

    Example: switchkd train recipes/tiny.yaml --train.output runs/mine --train.learning-rate 5e-4 --method.switch 0
    """

    #: The recipe; its relative paths are relative to the current directory.
    recipe: Annotated[Positional[Path | None], arg(metavar="RECIPE.yaml")] = None
    #: Check the recipe, print it with every default and the memory it needs, and stop; needs no weights and no data.
    dry_run: bool = False
    #: With --dry-run: the recipe and its stages as JSON.
    json: bool = False
    #: Go on from the last checkpoint in the recipe's output folder, if there is one.
    resume: bool = True
    #: Go on from the finished student of this run, with its bridge and learned maps: student.path and student.continue_run.
    from_: Annotated[Path | None, arg(name="from", metavar="RUN")] = None
    #: List every field of a recipe with its type, default and meaning (docs/fields.md), and stop; needs no recipe.
    fields: bool = False
    #: Go on even where rows, teacher, start weights or the number of processes are others than when the checkpoint was saved.
    accept_changes: bool = False

    takes_fields: ClassVar[bool] = True
    goes_on: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Train, or show what would be trained."""
        if self.fields:
            from switchkd.recipe.field_list import as_text

            print(as_text(min(shutil.get_terminal_size((120, 24)).columns, 120)), end="")
            return 0
        if self.recipe is None:
            return fail("train needs RECIPE.yaml; switchkd recipe writes one for your models and data", 2)
        if self.from_ is not None:
            fields = [*fields, "--student.path", str(self.from_), "--student.continue-run", "true"]
        recipe = load_recipe(self.recipe, fields)
        if self.json and not self.dry_run:
            return fail("--json is for --dry-run", 2)
        if self.dry_run:
            show(recipe, as_json=self.json)
            return 0
        require_parts(recipe)
        with model_libraries():
            from switchkd.commands.after_training import tell_what_came_out
            from switchkd.distillation import distill
            from switchkd.processes import processes

        student = distill(recipe, resume=self.resume, accept_changes=self.accept_changes).folder
        if processes().is_main_process:
            tell_what_came_out(recipe, student)
        return 0


def show(recipe: "Recipe", *, as_json: bool = False) -> None:
    """Print a recipe with every default, and what its stages would do and need."""
    import yaml

    from switchkd.recipe.packages import check_packages

    check_packages(recipe)
    with model_libraries():
        from switchkd.data.teacher_store import describe
        from switchkd.recipe.schema import data_weights, recipe_to_dict
        from switchkd.train.memory import forecast

    plain, stages = recipe_to_dict(recipe), []
    if not as_json:
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
    for number, stage in enumerate(recipe.resolved_stages(), start=1):
        length = f"{stage.max_steps} steps" if stage.max_steps > 0 else f"{stage.num_train_epochs:g} epochs"
        weights, memory = data_weights(stage.data), str(forecast(recipe, stage))
        data = ", ".join(name if weight == 1 else f"{name} (weight {weight:g})" for name, weight in weights)
        paths = [one.teacher.path for one in stage.by_teacher.values() if one.teacher is not None]
        taught = f" from {' and '.join(paths)}" if paths and len(recipe.teacher_sections) > 1 else ""
        say(
            f"stage {number}, {stage.name}: {stage.method.label}{taught} trains {', '.join(stage.train)} for {length} on {data}"
        )
        say(f"stage {number}, memory: {memory}")
        stages.append(
            {
                "name": stage.name,
                "method": stage.method.label,
                "teacher": None if stage.teacher is None else stage.teacher.path,
                "teachers": {tag: teacher.path for tag, teacher in stage.tagged.items()},
                "train": stage.train,
                "length": length,
                "memory": memory,
            }
        )
    for cache in dict.fromkeys(
        teacher.cache for teacher in recipe.teacher_sections.values() if teacher.cache is not None
    ):
        say(f"teacher's cache: {describe(Path(cache))}")
    if as_json:
        print_json({"recipe": plain, "stages": stages})
    say("the recipe is valid; nothing was trained (--dry-run)")
