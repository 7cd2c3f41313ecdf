"""Whether the models will wait for the data."""

from collections.abc import Iterator
from statistics import median
from time import perf_counter

import torch

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined

#: A step costs about three of its forward passes: its own, and the backward, which is twice that.
_STEP = 3
#: The share of the time that models may wait for data before it is worth a word.
_TOLERATED = 0.2
#: The faster of so many tries counts: the first one warms up.
_REPEATS = 2


def throughput(examined: Examined) -> Iterator[Finding]:
    """Rows per second that are read and processed, against rows per second that are trained on, as far as a forward pass tells."""
    size = min(examined.context.stage.per_device_train_batch_size, len(examined.samples))
    load_s = median(examined.encoding_s)
    step_s = _STEP * min(_forward_seconds(examined, size) for _ in range(_REPEATS)) / size
    workers = examined.context.run.recipe.train.dataloader_num_workers
    share = waiting(load_s, step_s, workers)
    detail = (
        f"{1 / load_s:.0f} rows/s from one process, about {1 / step_s:.0f} rows/s through the models (estimated from a forward pass): "
        f"with dataloader_num_workers {workers} they wait {share:.0%} of the time"
    )
    if share <= _TOLERATED:
        yield Finding("ok", "data loader", detail)
    else:
        enough = int(load_s / step_s * (1 - _TOLERATED)) + 1
        yield Finding(
            "warning",
            "data loader",
            f"{detail}. {max(enough, workers + 1)} workers would keep up, on as many free cores",
        )


def waiting(load_s: float, step_s: float, workers: int) -> float:
    """The share of the time that the models wait, if a row takes one process `load_s` to load and the models `step_s` to train on.

    Without workers loading and training take turns; workers load meanwhile.
    """
    wait_s = load_s if workers == 0 else max(0.0, load_s / workers - step_s)
    return wait_s / (wait_s + step_s)


@torch.no_grad()
def _forward_seconds(examined: Examined, size: int) -> float:
    """Of all pathways without their heads."""
    batch = examined.batch(examined.samples[:size])
    begin = perf_counter()
    with examined.autocast():
        examined.context.pair(batch)
    if batch.student.tokens.is_cuda:
        torch.cuda.synchronize(batch.student.tokens.device)
    return perf_counter() - begin
