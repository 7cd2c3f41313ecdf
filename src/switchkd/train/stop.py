"""A signal during training: the step is finished and saved, then the run ends."""

import os
import signal
from functools import partial
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from switchkd.agree import over_hosts
from switchkd.interrupts import Interrupted

#: How long a worker of the data loader outlives a SIGTERM to the whole process group: the step needs its rows.
_WORKER_SECONDS = 60


class StopAtStepEnd(TrainerCallback):
    """Saves and stops at the end of the step in which a signal came to any of the processes; a second signal ends this one at once."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int) -> None:
        """The handler of the signals."""
        name = signal.Signals(number).name
        if self.number:
            raise Interrupted(number, f"ended at once by a second signal, {name}, without saving")
        self.number = number
        # not print: it may be what the signal has interrupted
        os.write(
            2, f"\n{name}: the run is saved at the end of this step and ends; once more, and it ends now\n".encode()
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint and the end."""
        self.number = _agreed(self.number)
        if self.number:
            control.should_save = control.should_training_stop = True

    def raise_if_stopped(self, args: TrainingArguments, stage: str, state: TrainerState) -> None:
        """Raise `Interrupted`, with where the run was saved and how it goes on, if a signal came."""
        self.number = _agreed(self.number)
        if self.number:
            raise Interrupted(
                self.number,
                f"{signal.Signals(self.number).name}: stage {stage} is saved in {args.output_dir}/checkpoint-{state.global_step}, step "
                f"{state.global_step} of {state.max_steps}; the same command goes on from there",
            )


def _agreed(number: int) -> int:
    """The signal that any of the processes had: all must stop at the same step."""
    return over_hosts([number], "max")[0]


def start_worker(start: Any, number: int) -> None:
    """What a worker of the data loader begins with: signals to the whole process group must not take the rows of the last step away."""
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_WORKER_SECONDS))
    if start is not None:
        start(number)


def shielded(start: Any) -> Any:
    """`worker_init_fn` of a data loader, with `start_worker` before it."""
    return partial(start_worker, start)
