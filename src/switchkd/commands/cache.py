"""`switchkd cache`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_parts
from switchkd.commands.verb import Verb, load_recipe, model_libraries, say


@dataclass(frozen=True)
class Cache(Verb):
    """Ask the teacher about every row of a recipe once, and keep what it says in the folder `teacher.cache`; training reads it there.

    Where stages have teachers of their own, each fills the folder that its section names.

    Launched with torchrun or accelerate launch, every process does its share. The same command goes on where it was interrupted.

    Example: switchkd cache recipes/tiny.yaml --teacher.cache runs/teacher-cache
    """

    #: The recipe; fields can be changed behind it with --section.field value.
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE.yaml")]

    takes_fields: ClassVar[bool] = True
    goes_on: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Fill the cache, and say what it holds."""
        recipe = load_recipe(self.recipe, fields)
        require_parts(recipe)
        with model_libraries():
            from switchkd.processes import processes
            from switchkd.train.teacher_cache import make_caches

        for made in make_caches(recipe):
            if not processes().is_main_process:
                continue
            say(
                f"{made.folder}: {made.rows:,} rows, {made.answers:,} answer tokens; {made.written:,} rows were written now"
            )
            if made.left_out is not None:
                mean, largest = made.left_out
                say(
                    f"other ids than those that are kept have {mean:.3%} of the teacher's probability on average, {largest:.3%} at most"
                )
        return 0
