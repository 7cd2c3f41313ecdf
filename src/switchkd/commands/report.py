"""`switchkd report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_paths
from switchkd.commands.verb import Verb, model_libraries, say


@dataclass(frozen=True)
class Report(Verb):
    """Write one HTML page about runs: results, losses, knees, agreement with the teacher, attention, examples, cost, recipes.

    Knees, agreement and attention are computed now, with the runs' students and teachers, on some of the test questions.

    Example: switchkd report runs/demo -o runs/demo/report.html

    Example: switchkd report runs/sft runs/switch-kd runs/teacher.results.json --baseline sft
    """

    #: Folders of runs, folders of several runs (the demo's), results files of `switchkd evaluate`, or the folder of one study.
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    #: The page, a file of its own.
    output: Annotated[Path, arg(aliases=("-o",))] = Path("report.html")
    #: Differences are taken to this model; by default the first run of plain SFT, else the first run.
    baseline: str | None = None
    #: Test questions that knees and agreement are computed on; 0 computes nothing, and loads no model.
    questions: int = 64
    #: Questions whose attention is shown.
    attention: int = 6
    #: Ids of the questions whose attention is shown, instead of chosen ones.
    show: tuple[str, ...] = ()
    #: Also write the results, and the differences to the baseline, into the model cards of the runs' students.
    card: bool = False

    def run(self, fields: Sequence[str]) -> int:
        """Gather, compute and write."""
        if not self.runs:
            raise ValueError("name at least one run: switchkd report RUN -o report.html")
        require_paths(self.runs)
        with model_libraries():
            from switchkd.report.build import report, write_cards

        evidence, page = report(
            self.runs,
            self.output,
            baseline=self.baseline,
            questions=self.questions,
            attention=self.attention,
            show=self.show,
        )
        if self.card:
            for card in write_cards(evidence):
                say(f"results in {card}")
        say(f"the report is in {page}")
        return 0
