"""Progress of a stage: a rich bar on a terminal, plain lines elsewhere and in the run's log."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from rich.console import RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from switchkd.console import TOLD, is_quiet, say, terminal
from switchkd.train.speed import Speed

#: Between two plain lines, in seconds.
_PAUSE_S = 15.0


class _Bar(RichProgress):
    """A bar, and below it what was logged last: on one line they would cut each other off."""

    logged = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.logged)


class Progress(TrainerCallback):
    """Shows step, loss and its terms, learning rate, speed, memory and time left."""

    def __init__(self, stage: str, terms: list[str], speed: Speed) -> None:
        self.stage = stage
        self.speed = speed
        #: What to show of a log line; the trainer fills it.
        self.terms = terms
        self.bar: _Bar | None = None
        self.said_at = float("-inf")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.speed.begin(state.global_step)
        if state.is_world_process_zero and sys.stderr.isatty() and not is_quiet():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = _Bar(*columns, console=terminal(stderr=True))
            self.task = self.bar.add_task(self.stage, total=state.max_steps, completed=state.global_step)
            self.bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Advance it."""
        if self.bar:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the terms, and those of held-out rows whenever they were looked at."""
        if state.is_world_process_zero and logs and "eval_loss" in logs:
            self._tell(f"{self.stage}: after step {state.global_step}, on held-out rows: {_measured(logs, self.terms)}")
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        due = time.monotonic() - self.said_at > _PAUSE_S or state.global_step >= state.max_steps
        if not (self.bar or due):
            return
        names = ["loss", *self.terms] if len(self.terms) > 1 else self.terms  # a single term is the loss
        terms = [*(f"{name} {logs[name]:.3f}" for name in names if name in logs), f"lr {logs['learning_rate']:.1e}"]
        logged = "  ".join([*terms, self.speed.since_last(state.global_step, state.max_steps)])
        line = f"{self.stage}: step {state.global_step} of {state.max_steps}  {logged}"
        if self.bar:
            self.bar.logged = logged
        if due:
            self.said_at = time.monotonic()
            self._tell(line, shown=self.bar is not None)

    def _tell(self, line: str, *, shown: bool = False) -> None:
        """Say a line, or only log what the bar shows."""
        if shown:
            TOLD.info("%s", line)
        else:
            say(line)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar:
            self.bar.stop()


def _measured(logs: dict[str, float], terms: list[str]) -> str:
    """What was measured on held-out rows."""
    names = ["loss", *terms] if len(terms) > 1 else terms
    measured = [f"{name} {logs[f'eval_{name}']:.3f}" for name in names if f"eval_{name}" in logs]
    if "eval_exact_match" in logs:
        measured.append(f"exact match {logs['eval_exact_match']:.1f} %")
    return "  ".join(measured)
