"""`switchkd study`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from switchkd.commands.verb import Verb, model_libraries, say


@dataclass(frozen=True)
class Study(Verb):
    """Train a grid of methods, seeds and sizes of data, and compare them.

    What is finished is never run again, what was killed goes on. Fields of the recipe can be changed for all arms behind it with
    --section.field value.

    Example: switchkd study recipes/study-tiny.yaml --jobs 2
    """

    #: The study; its relative paths are relative to the current directory.
    study: Annotated[Positional[Path], arg(metavar="STUDY.yaml")]
    #: Cells at a time; by default as the file says.
    jobs: int | None = None
    #: Check the study, list its cells, and stop.
    dry_run: bool = False

    takes_fields: ClassVar[bool] = True
    goes_on: ClassVar[bool] = True

    def run(self, fields: Sequence[str]) -> int:
        """Run what is left of it and print the table."""
        from switchkd.study import load_study

        study = load_study(self.study)
        if self.jobs is not None:
            study = replace(study, jobs=self.jobs)
        if self.dry_run:
            from switchkd.study.plan import cells

            planned = cells(study, fields)
            for cell in planned:
                print(cell)
            say(f"{len(planned)} cells; nothing was trained (--dry-run)")
            return 0
        with model_libraries():
            from switchkd.console import terminal
            from switchkd.study.run_study import run_study
            from switchkd.study.study_table import rich_table

        rows = run_study(study, fields)
        title = "Score in percent, mean over kinds and seeds; difference to " + study.baseline
        terminal(width=160).print(rich_table(rows, title=title))
        say(f"table: {study.output}/table.md, results: {study.output}/study.json")
        return 0
