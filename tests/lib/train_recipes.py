"""Trains recipes, one after the other, on the processes of a launcher: `accelerate launch … train_recipes.py RECIPE…`.

accelerate turns FSDP on where the processes have GPUs. Where its configuration asks for FSDP, its state says here of CPUs what it says of
GPUs then; all that follows is accelerate's, the Trainer's and torch's own code, over gloo.
"""

import os
import sys

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from switchkd.cli import main

_init = AcceleratorState.__init__


def _with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    known = "fsdp_plugin" in AcceleratorState._shared_state
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if not known:
        assert self.distributed_type is DistributedType.MULTI_CPU, self.distributed_type
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        AcceleratorState.__init__ = _with_fsdp
    for recipe in sys.argv[1:]:
        if code := main(["train", recipe]):
            sys.exit(code)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
