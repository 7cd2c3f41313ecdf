"""`switchkd doctor`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_model, require_parts
from switchkd.commands.verb import Verb, fail, load_recipe, model_libraries, print_json

if TYPE_CHECKING:
    from switchkd.doctor import Findings
    from switchkd.recipe.schema import Recipe


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
    #: Print the findings and samples as JSON; of a pair without a recipe, instead of the proposal.
    json: bool = False

    takes_fields: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Print the findings, and samples or a proposal; 1 if the recipe, or the pair, must not be trained like this."""
        if self.recipe is None and self.teacher is not None and self.student is not None and not fields:
            for model in (self.student, self.teacher):
                require_model(model)
            with model_libraries():
                from switchkd.doctor import examine_pair

            findings, proposal = examine_pair(self.student, self.teacher)
            if findings.ok and not self.json:
                print(proposal, end="")
        elif self.recipe is None or self.teacher is not None or self.student is not None:
            return fail("doctor takes a recipe, or --teacher and --student", 2)
        else:
            findings = _examine(load_recipe(self.recipe, fields))
        if not (self.quiet and self.json):
            findings.print()
        if self.json:
            print_json(findings.to_dict())
        return 0 if findings.ok else 1


def _examine(recipe: "Recipe") -> "Findings":
    """What is found; what is not even there is a finding too, before a model library is imported."""
    try:
        require_parts(recipe)
    except (ValueError, OSError) as error:
        from switchkd.doctor.findings import unopened

        return unopened(error)
    with model_libraries():
        from switchkd.doctor import examine

    return examine(recipe)
