"""The demo: one teacher, and two students that differ in the method alone, on the procedural world; and a report about them."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

from switchkd import world
from switchkd.console import say, terminal
from switchkd.distillation import distill
from switchkd.evaluate import evaluate_model
from switchkd.files import write_together
from switchkd.methods import SFT
from switchkd.recipe.schema import Recipe, load_recipe
from switchkd.report.build import report
from switchkd.report.table import compare, markdown_table, rich_table

#: Pictures of each split; every one comes with ten questions.
TRAIN, VALIDATION, TEST = 1500, 20, 60
#: Test questions that the report computes knees and agreement on, and those whose attention it shows.
REPORTED, SHOWN = 32, 4
#: Columns of the table → folders of the output.
RUNS = {"SFT": "sft", "Switch-KD": "switch-kd"}


def main(seed: int = 0, output: str | Path = "runs/demo") -> None:
    """Write a data set, distil a student by Switch-KD and one by SFT, and compare them with the teacher.

    `seed` decides the pictures, the questions and the order of the data; both students start from the same weights.
    A demo that was interrupted goes on where it stopped.

    Raises:
        ValueError: if `output` holds something else than a demo of this seed.
    """
    output = Path(output)
    _claim(output, seed)
    say(f"demo with seed {seed} in {output}")
    world.once(
        output / "data", lambda folder: world.write(folder, train=TRAIN, validation=VALIDATION, test=TEST, seed=seed)
    )
    world.once(output / "teacher", world.write_teacher)
    world.once(output / "student-init", world.write_student)
    results = {"teacher": output / "teacher.results.json"}
    evaluate_model(output / "teacher", output / "data" / "test.json", output=results["teacher"])
    recipe = demo_recipe(seed, output)
    for name, folder in RUNS.items():
        say(f"{name}: {folder} (recipe in {output / folder / 'recipe.yaml'})")
        method = SFT() if name == "SFT" else recipe.method
        distill(replace(recipe, method=method, train=replace(recipe.train, output=str(output / folder))))
        results[name] = output / folder / "results.json"
    conclude(results, output)


def demo_recipe(seed: int, output: Path) -> Recipe:
    """The demo's recipe, `tiny.yaml`, with its paths in `output`."""
    where = {
        "teacher.path": "teacher",
        "student.path": "student-init",
        "data.train": "data/train.json",
        "evaluate.data": "data/test.json",
    }
    flags = [word for field, path in where.items() for word in (f"--{field}", str(output / path))]
    return load_recipe(world.recipe_path(), [*flags, "--train.seed", str(seed)])


def conclude(results: dict[str, Path], output: Path) -> None:
    """Print the table of accuracies, leave it as Markdown and JSON, and write the report."""
    comparison = compare(results, difference=("Switch-KD", "SFT"))
    terminal(width=100).print(rich_table(comparison))
    table = {kind: dict(zip(comparison.columns, values, strict=True)) for kind, values in comparison.rows.items()}
    as_json = json.dumps(table, indent=2, ensure_ascii=False) + "\n"
    write_together({output / "table.md": markdown_table(comparison), output / "results.json": as_json})
    _, page = report([output], output / "report.html", questions=REPORTED, attention=SHOWN)
    for name, folder in RUNS.items():
        say(f"{name} student: {output / folder / 'student'}")
    say(f"table: {output / 'table.md'}, results: {output / 'results.json'}")
    say(f"report: {page} (open it in a browser)")
    image = output / "data" / "images" / "test" / "00000.png"
    models = [f"{name}={output / folder / 'student'}" for name, folder in RUNS.items()]
    say("next:")
    for command in (
        ["chat", str(output / RUNS["Switch-KD"] / "student"), "--image", str(image)],
        ["chat", "--web", f"teacher={output / 'teacher'}", *models],
    ):
        say(f"  {shlex.join(['switchkd', *command])}")


def _claim(output: Path, seed: int) -> None:
    marker = output / "seed"
    if output.is_dir() and any(output.iterdir()):
        written = marker.read_text().strip() if marker.exists() else "no seed"
        if written != str(seed):
            raise ValueError(
                f"{output} is not a demo with seed {seed} (found {written}): choose another --output or remove it"
            )
    write_together({marker: f"{seed}\n"})
