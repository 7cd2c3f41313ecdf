"""A day in small: thousands of steps, with data workers and checkpoints; nothing grows, nobody is left."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from lives import in_a_fork


def soak(tell: Callable[..., None], folder: str, steps: int) -> None:
    """In a process of its own: train, and tell what is held, ten times or more."""
    from steps import make_trainer, rows
    from transformers import TrainerCallback

    from switchkd import rendering
    from switchkd.methods import SFT

    me = psutil.Process()

    def living() -> list[psutil.Process]:
        return [child for child in me.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % (steps // 20) == steps // 40:
                alive = [child for child in me.children() if child.status() != psutil.STATUS_ZOMBIE]
                own = rendering._renderer  # that of chat templates, if one was rendered here; workers have their own
                workers = [child for child in alive if own is None or child.pid != own._process]
                tell("held", state.global_step, me.memory_info().rss / 2**20, me.num_fds(), len(workers))

    trainer = make_trainer(
        Path(folder), batch_size=4, steps=steps, method=SFT(), data=rows(400), save_strategy="steps", save_steps=steps // 20,
        save_total_limit=2, dataloader_num_workers=2, learning_rate=1e-4,
    )  # fmt: skip
    trainer.add_callback(Watch())
    trainer.train()
    tell("trained", trainer.state.global_step)
    del trainer
    rendering._forget()
    begun = time.monotonic()
    while living() and time.monotonic() < begun + 20:
        time.sleep(0.1)
    tell("left", len(living()))


@pytest.mark.slow  # its short form too
def test_a_day_in_small(tmp_path, figure, whole):
    steps = 5000 if whole else 120
    before = len(os.listdir("/proc/self/fd"))
    said = in_a_fork(soak, str(tmp_path), steps)
    held = [words[1:] for words in said if words[0] == "held"]
    assert ("trained", steps) in said, said
    assert ("left", 0) in said
    assert len(held) >= 20
    # after a quarter, what is imported and allocated late is there
    settled = held[len(held) // 4 :]
    grown = max(rss for _, rss, _, _ in settled) - settled[0][1]
    handles = {fds for _, _, fds, _ in settled}
    assert grown < 16, held
    assert max(handles) - min(handles) <= 2, held
    assert {workers for _, _, _, workers in held} == {2}
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2
    figure(
        "1. soak",
        f"{steps} steps, {steps // 100} epochs of 2 data workers each, 20 checkpoints",
        f"memory grew by {grown:.1f} MiB after the first quarter, {min(handles)} to {max(handles)} file handles, 0 workers left",
    )
