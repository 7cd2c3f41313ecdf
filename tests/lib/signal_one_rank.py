"""Trains on every rank, and sends the last one a signal in its second step: `torchrun … signal_one_rank.py FOLDER`."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from steps import make_trainer
from transformers import TrainerCallback

from switchkd.interrupts import Interrupted, caught
from switchkd.methods import SFT
from switchkd.train.stop import StopAtStepEnd


class SignalTheLast(TrainerCallback):
    """In the middle of the second step."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Send it."""
        if state.global_step == 1 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    """The step and the exit code of each rank go into `FOLDER/rank-N.json`."""
    trainer = make_trainer(folder, method=SFT(), batch_size=2, steps=5)
    stop = StopAtStepEnd()
    trainer.add_callback(stop)
    trainer.add_callback(SignalTheLast())
    code = 0
    try:
        with caught(stop.note):
            trainer.train()
            stop.raise_if_stopped(trainer.args, "train", trainer.state)
    except Interrupted as ended:
        code = ended.code
    (folder / f"rank-{trainer.args.process_index}.json").write_text(json.dumps([trainer.state.global_step, code]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
