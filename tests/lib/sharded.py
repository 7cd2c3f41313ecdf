"""One Switch-KD loss and its gradients with the pair sharded over ranks (FSDP2): `torchrun … sharded.py OUT`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from steps import collate, rows
from tiny_models import tiny_llava
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from switchkd.losses import SummedLoss, fused_loss
from switchkd.methods import SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.types import Hidden, answer_targets

METHOD = SwitchKD(window=32)
#: The rows of each rank. Those of the second have no image.
ROWS = [[rows()[0], rows()[1]], [rows()[3], rows()[7]]]


def make_pair() -> Pair:
    """The tiny pair of `steps.py`, in float64."""
    student = Pathway(tiny_llava(seed=2).double())
    student.train_only(("vision", "projector", "language"))
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1).double())
    return Pair(student, teacher, needs=METHOD.needs, vocabulary=student.head.rows).train()


def loss_of(pair: torch.nn.Module, samples: list[dict]) -> SummedLoss:
    """As the trainer calls it."""
    batch = collate(samples)
    targets = answer_targets(batch["labels"])

    def finish(hidden: Hidden) -> SummedLoss:
        return fused_loss(
            METHOD.chunk_loss(), targets, hidden.student, hidden.student_head, hidden.teacher, hidden.switch,
            hidden.teacher_head, vocabulary=hidden.vocabulary, chunk=5,
        )  # fmt: skip

    return pair(batch, METHOD.needs, finish)


def gradients(pair: torch.nn.Module) -> dict[str, Tensor]:
    """Whole, whether they are sharded or not."""
    return {
        name: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        for name, p in pair.named_parameters()
        if p.grad is not None
    }


def main(output: Path) -> None:
    """Shard, run each rank's rows, and leave loss and gradients in `output`; then shard the head by itself, which is refused."""
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    pair = make_pair()
    for pathway in (pair.student, pair.teacher):
        for layer in [*pathway.model.model.vision_tower.encoder.layers, *pathway.model.model.language_model.layers]:
            fully_shard(layer)
    fully_shard(pair)
    own = ROWS[rank]
    found = loss_of(pair, own)
    (found.loss * world).backward()  # FSDP averages over ranks
    total = found.loss.detach()
    dist.all_reduce(total)
    whole = gradients(pair)
    message = ""
    alone = make_pair()
    fully_shard(alone.student.model.lm_head)
    fully_shard(alone)
    try:
        loss_of(alone, own)
    except TypeError as error:
        message = str(error)
    if rank == 0:
        torch.save({"loss": total, "gradients": whole, "refusal": message}, output)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
