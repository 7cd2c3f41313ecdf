"""One Switch-KD step's loss and gradients with the step sharded over ranks (FSDP2): `torchrun … sharded.py OUT`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from steps import collate, rows
from tiny_models import tiny_llava
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from switchkd.methods import SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.train.step import DistillationStep

METHOD = SwitchKD(window=32)
#: The rows of each rank. Those of the second have no image.
ROWS = [[rows()[0], rows()[1]], [rows()[3], rows()[7]]]


def make_step() -> DistillationStep:
    """The tiny pair of `steps.py`, in float64."""
    student = Pathway(tiny_llava(seed=2).double())
    student.train_only(("vision", "projector", "language"))
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1).double())
    pair = Pair(student, teacher, needs=METHOD.needs, vocabulary=student.head.rows)
    return DistillationStep(pair, METHOD).train()


def gradients(step: torch.nn.Module) -> dict[str, Tensor]:
    """Whole, whether they are sharded or not."""
    return {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for name, p in step.named_parameters()
        if p.grad is not None
    }


def main(output: Path) -> None:
    """Shard, run each rank's rows, and leave loss and gradients in `output`; then shard the head by itself, which is refused."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    step = make_step()
    for pathway in (step.pair.student, step.pair.teacher):
        for layer in [*pathway.model.model.vision_tower.encoder.layers, *pathway.model.model.language_model.layers]:
            fully_shard(layer)
    fully_shard(step)
    own = collate(ROWS[rank])
    found = step(own)
    (found.loss * world).backward()  # FSDP averages over ranks
    total = found.loss.detach()
    dist.all_reduce(total)
    whole = gradients(step)
    message = ""
    alone = make_step()
    fully_shard(alone.pair.student.model.lm_head)
    fully_shard(alone)
    try:
        alone(own)
    except TypeError as error:
        message = str(error)
    if rank == 0:
        torch.save({"loss": total, "gradients": whole, "refusal": message}, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
