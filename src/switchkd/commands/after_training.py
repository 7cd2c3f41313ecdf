"""What `switchkd train` says in the end: the results as a table, and the commands that come next, ready to copy."""

import shlex
from pathlib import Path

from switchkd.commands.verb import say
from switchkd.console import terminal
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.streaming import RowStream
from switchkd.recipe.schema import Recipe, data_names
from switchkd.report.results_table import results_table
from switchkd.results import Results

#: Rows that are searched for a picture to show.
_ROWS = 100


def tell_what_came_out(recipe: Recipe, student: Path) -> None:
    """Print the table of the run that left `student`, and what to do next."""
    run = student.parent
    results = run / "results.json"
    evaluated = recipe.evaluate is not None and results.exists()
    if evaluated:
        terminal(width=100).print(results_table(Results.load(results)))
    picture = _picture(recipe, results if evaluated else None)
    chat = ["chat", str(student), "--image", picture or "PICTURE.png"]
    if evaluated:
        commands = [["report", str(run), "-o", str(run / "report.html")], chat]
    else:
        commands = [["evaluate", str(student), "QUESTIONS.json", "--output", str(run / "results.json")], chat]
    say("next:")
    for command in commands:
        say(f"  {shlex.join(['switchkd', *command])}")


def _picture(recipe: Recipe, results: Path | None) -> str | None:
    """A file that the student can be asked about: of the test questions, else of the rows that it was trained on."""
    if results is not None:
        return next((file for one in Results.load(results).predictions for file in one.pictures), None)
    data = data_names(recipe.resolved_stages()[-1].data)
    try:
        if recipe.data.streaming:
            rows = RowStream(data, recipe.data.image_root, recipe.data.columns).head(_ROWS)
        else:
            rows = load_rows(data, recipe.data.image_root, recipe.data.columns)
    except DataError:  # gone since they were trained on; a student is there all the same
        return None
    images = (image for row in rows.select(range(min(_ROWS, len(rows)))) for image in row["images"])
    return next((image["path"] for image in images if image["path"]), None)
