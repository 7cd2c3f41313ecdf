"""Whether a step fits into memory, said before it does not."""

from collections.abc import Iterator

import psutil
import torch

from switchkd.batch import Batch, Inputs
from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.samples import Examined
from switchkd.processes import sharded
from switchkd.train.memory import estimate, left_out


def memory(examined: Examined) -> Iterator[Finding]:
    """The estimate for a batch of rows like the longest one, padded to the longest of all, or of packed rows like that with most images."""
    context = examined.context
    student, teacher = context.pair.student, context.pair.teacher or context.pair.teacher_head
    rows = min(context.stage.per_device_train_batch_size, len(context.drawn))
    if context.packs is None:
        batch, length = context.collator.join([examined.samples[0]] * rows), max(context.rows["length"])
    else:
        fullest = [context.collator.encode(row) for row in context.packs.most_images()]
        batch, length = context.collator.join(fullest * rows, [len(fullest)] * rows), context.packs.limit
    tokens = [pathway.family.image_token_id for pathway in (student, teacher) if pathway is not None]
    filler = next(token for token in range(3) if token not in tokens)
    batch = _padded(batch, length, filler)
    needed = estimate(
        context.run.recipe, context.stage, student.model.config, teacher.family.config if teacher else None, batch
    )
    free = _free_bytes(student.model.device)
    detail = f"{needed}{left_out(context.stage)}; {free / 2**30:.1f} GiB are free after the weights are loaded"
    level: Level = "ok" if needed.peak - needed.weights < free else "failed"
    if level == "failed":
        detail += (
            f". That is for {rows} rows of {length:,} tokens: lower train.per_device_train_batch_size, cut the "
            "longest rows with data.max_length, or set train.gradient_checkpointing or train.switch_checkpointing"
        )
    if level == "failed" and sharded():
        level, detail = "warning", f"{detail}. That is without sharding, and with it a device needs less"
    yield Finding(level, "memory", detail)


def _padded(batch: Batch, length: int, filler: int) -> Batch:
    """The batch in rows of at least `length` tokens, for every reader."""

    def longer(inputs: Inputs) -> Inputs:
        rows, width = inputs.tokens.shape
        more = max(length - width, 0)

        def zeros_behind(tensor: torch.Tensor) -> torch.Tensor:
            return torch.cat([tensor, tensor.new_zeros(rows, more)], dim=1)

        return inputs._replace(
            tokens=torch.cat([inputs.tokens, torch.full((rows, more), filler)], dim=1),
            predicts=inputs.predicts + inputs.predicts // width * more,
            types={name: zeros_behind(one) for name, one in inputs.types.items()},
            positions=None if inputs.positions is None else zeros_behind(inputs.positions),
            offsets=None if inputs.offsets is None else inputs.offsets + inputs.offsets // width * more,
        )

    student = longer(batch.student)
    readers = {name: student if one is batch.student else longer(one) for name, one in batch.readers.items()}
    return batch._replace(student=student, readers=readers)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
