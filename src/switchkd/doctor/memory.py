"""Whether a step fits into memory, said before it does not."""

from collections.abc import Iterator

import psutil
import torch
from torch import Tensor

from switchkd.doctor.findings import Finding
from switchkd.train.memory import Load, Memory, estimate
from switchkd.train.session import OpenStage
from switchkd.types import Batch, answer_targets, to_device


def memory(opened: OpenStage) -> Iterator[Finding]:
    """The estimate for the longest batch; where none is possible without weights, one forward of it is measured."""
    lengths = torch.tensor(opened.rows["length"])
    longest = lengths.topk(min(opened.stage.per_device_train_batch_size or 1, len(lengths))).indices
    rows = [opened.rows[index] for index in longest.tolist()]
    batch = opened.collator(rows)
    answers, images = len(answer_targets(batch["labels"])), sum(len(row["images"]) for row in rows)
    size, length = batch["input_ids"].shape
    load = Load(size, length, answers, images)
    student, teacher = (
        opened.pair.student.model.config,
        opened.pair.teacher.model.config if opened.pair.teacher else None,
    )
    try:
        needed = estimate(opened.session.recipe, opened.stage, student, teacher, load, batch)
    except ValueError:
        needed = _measured(opened, to_device(batch, opened.pair.student.model.device))
    free = _free_bytes(opened.pair.student.model.device)
    detail = f"{needed}; {free / 2**30:.1f} GiB are free beside the weights"
    yield Finding("ok" if needed.peak - needed.weights < free else "failed", "memory", detail)


def _measured(opened: OpenStage, batch: Batch) -> Memory:
    """Weights, gradients and optimizer from their sizes; activations from one forward, all of them under the student's name."""
    weights = sum(p.numel() * p.element_size() for p in opened.pair.parameters())
    gradients = sum(p.numel() * p.element_size() for p in opened.pair.parameters() if p.requires_grad)
    kept = _activation_bytes(opened, batch)
    peak = weights + 3 * gradients + kept
    return Memory(weights, 2 * gradients, gradients, 0, student_language=kept, switch=0, loss=0, peak=peak)


def _activation_bytes(opened: OpenStage, batch: Batch) -> int:
    """Bytes that autograd keeps for the backward of one micro-batch, each storage counted once, parameters not."""
    own = {p.untyped_storage().data_ptr() for p in opened.pair.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = opened.pair.training
    opened.pair.train()
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        terms = opened.method.terms(opened.pair(batch, opened.method.needs), answer_targets(batch["labels"]))
    opened.pair.train(training)
    del terms
    return sum(kept.values())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
