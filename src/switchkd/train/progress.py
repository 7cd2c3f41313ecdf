"""Progress of a stage: a rich bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from switchkd.train.speed import Speed

#: Between two plain lines, in seconds.
_PAUSE_S = 15.0


class Progress(TrainerCallback):
    """Shows step, loss terms, learning rate, speed, memory and time left."""

    def __init__(self, stage: str, terms: list[str], speed: Speed) -> None:
        self.stage = stage
        self.speed = speed
        #: What to show of a log line; the trainer fills it.
        self.terms = terms
        self.bar: RichProgress | None = None
        self.said_at = float("-inf")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self.speed.begin(state.global_step)
        if state.is_world_process_zero and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self.bar = RichProgress(*columns, TextColumn("{task.fields[terms]}"))
            self.task = self.bar.add_task(self.stage, total=state.max_steps, completed=state.global_step, terms="")
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
        """Show the terms."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        terms = "  ".join([*(f"{name} {logs[name]:.3f}" for name in self.terms), f"lr {logs['learning_rate']:.1e}"])
        if self.bar:
            self.bar.update(self.task, terms=f"{terms}  {self.speed.since_last(state.global_step, state.max_steps)}")
        elif time.monotonic() - self.said_at > _PAUSE_S or state.global_step >= state.max_steps:
            self.said_at = time.monotonic()
            speed = self.speed.since_last(state.global_step, state.max_steps)
            line = f"{self.stage}: step {state.global_step} of {state.max_steps}  {terms}  {speed}"
            print(line, file=sys.stderr, flush=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar:
            self.bar.stop()
