"""Whether a step fits into memory, said before it does not."""

from collections.abc import Iterator

import psutil
import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor

from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.samples import autocast
from switchkd.train.memory import Load, Memory, NoEstimateError, estimate, left_out, loss_bytes
from switchkd.train.stage import StageContext
from switchkd.types import Batch, Hidden, answer_targets, to_device


def memory(context: StageContext) -> Iterator[Finding]:
    """The estimate for the longest batch; where none is possible without weights, one forward of it is measured."""
    lengths = torch.tensor(context.rows["length"])
    longest = lengths.topk(min(context.stage.per_device_train_batch_size, len(lengths))).indices
    rows = [context.rows[index] for index in longest.tolist()]
    batch = context.collator(rows)
    answers, images = len(answer_targets(batch["labels"])), sum(len(row["images"]) for row in rows)
    size, length = batch["input_ids"].shape
    load = Load(size, length, answers, images)
    device = context.pair.student.model.device
    student, teacher = (
        context.pair.student.model.config,
        context.pair.teacher.model.config if context.pair.teacher else None,
    )
    try:
        needed, how = estimate(context.run.recipe, context.stage, student, teacher, load, batch), ""
    except NoEstimateError:
        needed, how = _measured(context, to_device(batch, device)), " (measured, not estimated)"
    free = _free_bytes(device)
    detail = f"{needed}{how}{left_out(context.method)}; {free / 2**30:.1f} GiB are free beside the weights"
    level: Level = "ok" if needed.peak - needed.weights < free else "failed"
    if level == "failed" and _sharded():
        level, detail = "warning", f"{detail}. That is without sharding, and with it a device needs less"
    yield Finding(level, "memory", detail)


def _sharded() -> bool:
    """Whether `accelerate launch` was told to shard: then the weights, gradients and moments are spread over the devices."""
    return any(parse_flag_from_env(name) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))


def _measured(context: StageContext, batch: Batch) -> Memory:
    """Weights, gradients and optimizer from their sizes; activations from one forward, all of them under the student's name."""
    recipe, device = context.run.recipe, context.pair.student.model.device
    weights = sum(p.numel() * p.element_size() for p in context.pair.parameters())
    gradients = sum(p.numel() * p.element_size() for p in context.pair.parameters() if p.requires_grad)
    hidden, kept = _forward(context, batch)
    loss = loss_bytes(recipe, context.method, hidden, device)
    held = kept + loss
    # activations go while gradients come; with accumulation those of earlier micro-batches are there from the start
    most = held + gradients if context.stage.gradient_accumulation_steps > 1 else max(held, gradients)
    peak = weights + 2 * gradients + most
    return Memory(weights, 2 * gradients, gradients, 0, student_language=kept, switch=0, loss=loss, peak=peak)


def _forward(context: StageContext, batch: Batch) -> tuple[Hidden, int]:
    """The hidden states of one micro-batch, and the bytes that autograd keeps for its backward: storages once, parameters not."""
    own = {p.untyped_storage().data_ptr() for p in context.pair.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = context.pair.training
    context.pair.train()
    with (
        torch.random.fork_rng(),
        autocast(context),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        hidden = context.pair(batch, context.method.needs, lambda hidden: hidden)
    context.pair.train(training)
    assert isinstance(hidden, Hidden)
    return hidden, sum(kept.values())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
