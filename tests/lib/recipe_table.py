"""The table of docs/recipes.md: what a step of each shipped pair takes, from configs alone.

PYTHONPATH=tests/lib python -m recipe_table [RECIPE …]
"""

import sys

from published_configs import PUBLISHED

from switchkd.recipe.schema import Recipe, load_recipe
from switchkd.recipe.shipped_files import shipped
from switchkd.train.memory import Memory, estimate

HEAD = (
    "recipe",
    "rows of a device",
    "tokens of a row",
    "weights",
    "optimizer",
    "gradients",
    "activations",
    "peak",
    "TFLOP",
    "TFLOP a row",
)


def pairs() -> dict[str, Recipe]:
    """The recipes whose teacher and student are public models, by name."""
    recipes = {name: load_recipe(file) for name, file in shipped().items() if not name.startswith("study")}
    return {name: recipe for name, recipe in recipes.items() if recipe.teacher and recipe.teacher.path in PUBLISHED}


def last_stage(recipe: Recipe) -> Memory:
    """The estimate of its last stage, in which the most is trained."""
    assert recipe.teacher is not None
    configs = [PUBLISHED[model.path][0]() for model in (recipe.student, recipe.teacher)]
    return estimate(recipe, recipe.resolved_stages()[-1], *configs)


def row(name: str, recipe: Recipe, memory: Memory) -> str:
    """A line of the table; sizes in GiB."""
    rows, length = recipe.resolved_stages()[-1].per_device_train_batch_size, recipe.data.max_length
    activations = memory.student_vision + memory.student_language + memory.switch + memory.loss
    sizes = [memory.weights, memory.optimizer, memory.gradients, activations, memory.peak]
    cells = [f"`{name}`", f"{rows}", f"{length:,}", *(f"{size / 2**30:.1f}" for size in sizes)]
    return "| " + " | ".join([*cells, f"{memory.flops / 1e12:,.0f}", f"{memory.flops / rows / 1e12:,.0f}"]) + " |"


if __name__ == "__main__":
    print("| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", sep="\n")
    for shown, chosen in pairs().items():
        if not sys.argv[1:] or shown in sys.argv[1:]:
            print(row(shown, chosen, last_stage(chosen)), flush=True)
