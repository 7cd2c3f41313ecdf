"""Whether a step fits into memory, said before it does not."""

from collections.abc import Iterator

import psutil
import torch

from switchkd.batch import TEACHER, AnyBatch, Batch, Inputs, TaggedBatch
from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.samples import Examined
from switchkd.processes import sharded
from switchkd.train.memory import estimate, left_out


def memory(examined: Examined) -> Iterator[Finding]:
    """The estimate for a batch of rows like the longest one, padded to the longest of all, or of packed rows like that with most images."""
    context, step = examined.context, examined.context.step
    student = context.pair.student
    rows = min(context.stage.per_device_train_batch_size, len(context.drawn))
    length = max(context.rows["length"]) if context.packs is None else context.packs.limit
    heads = {tag: pair.teacher or pair.teacher_head for tag, pair in step.pairs.items()}
    configs = {tag: head.family.config for tag, head in heads.items() if head is not None}
    teachers = configs if step.is_tagged else configs.get(TEACHER)
    needed = max(
        (
            estimate(context.run.recipe, context.stage, student.model.config, teachers, batch)
            for batch in _largest(examined, rows)
        ),
        key=lambda one: one.peak,
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


def _largest(examined: Examined, rows: int) -> Iterator[AnyBatch]:
    """Batches of which one needs most: of several teachers each has its longest row, and one of them as many of it as there is room for."""
    context = examined.context
    heads = [context.pair.student, *(pair.teacher or pair.teacher_head for pair in context.step.pairs.values())]
    tokens = [head.family.image_token_id for head in heads if head is not None]
    filler = next(token for token in range(len(tokens) + 1) if token not in tokens)
    if context.packs is not None:
        fullest = [context.collator.encode(row) for row in context.packs.most_images()]
        batch = context.collator.join(fullest * rows, [len(fullest)] * rows)
        yield _padded(batch, context.packs.limit, filler) if isinstance(batch, Batch) else batch
        return
    if not context.step.is_tagged:
        yield _padded(examined.collator.join([examined.samples[0]] * rows), max(context.rows["length"]), filler)
        return
    longest = {}
    for tag, one in context.by_teacher.items():
        if len(one.rows):
            alone = Examined(one)
            longest[tag] = alone.collator, alone.collator.encode(alone.rows[0]), max(one.rows["length"])
    for most in longest:
        chosen = sorted(longest, key=lambda tag: tag != most)[:rows]
        parts = {}
        for tag in chosen:
            (collator, sample, length), count = longest[tag], rows - len(chosen) + 1 if tag == most else 1
            parts[tag] = _padded(collator.join([sample] * count), length, filler)
        yield TaggedBatch(parts)


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
