"""How long torch.compile takes, said as it happens: the first steps look slow by it, and later ones where lengths are new."""

from typing import Any

import torch._dynamo.utils
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from switchkd.console import say


class CompileTime(TrainerCallback):
    """Says after each step what this process has spent on compiling, where it has grown."""

    def __init__(self) -> None:
        self._begun = self._said = compile_seconds()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say it of this step, and in all."""
        now = compile_seconds()
        if now > self._said and state.is_world_process_zero:
            say(
                f"step {state.global_step}: torch.compile took {now - self._said:.1f} s of it, {now - self._begun:.1f} s so far"
            )
        self._said = now


def compile_seconds() -> float:
    """What this process has spent on compiling, forward and backward passes."""
    return float(torch._dynamo.utils.calculate_time_spent()["total_wall_time"])
