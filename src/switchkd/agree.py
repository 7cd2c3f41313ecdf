"""What one process of a run finds out for all of them, and numbers of all of them together."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from accelerate.utils import broadcast_object_list
from torch import distributed

from switchkd.processes import processes

_T = TypeVar("_T")


def on_main(work: Callable[[], _T]) -> _T:
    """What `work` returns in the main process, in every process; what it raises there is raised in all of them, so that none waits."""
    outcome: list[Any] = [None, None]
    if processes().is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: _T = outcome[0]
    return result


def in_every_process(work: Callable[[], _T]) -> list[_T]:
    """What `work` returns in each process, in their order, in every one of them.

    What it raises in any of them is raised in all: a process that went on alone would wait for ever.
    """
    outcome: tuple[Any, Exception | None]
    try:
        outcome = work(), None
    except Exception as error:
        if processes().num_processes == 1:
            raise
        outcome = None, error
    outcomes: list[tuple[Any, Exception | None]] = [outcome]
    if processes().num_processes > 1:
        outcomes *= processes().num_processes
        distributed.all_gather_object(outcomes, outcome, group=_hosts())
    if outcome[1] is not None:
        raise outcome[1]
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [result for result, _ in outcomes]


def over_hosts(numbers: list[int], operation: Literal["sum", "max"]) -> list[int]:
    """Of each of these numbers the sum, or the largest, of all processes: they go from host to host, and no GPU is waited for."""
    if processes().num_processes == 1:
        return numbers
    values = torch.tensor(numbers)
    distributed.all_reduce(values, getattr(distributed.ReduceOp, operation.upper()), group=_hosts())
    return values.tolist()


@functools.cache
def _hosts() -> distributed.ProcessGroup | None:
    """The processes, connected by what moves tensors of the CPU; None where they are already."""
    return None if processes().device.type == "cpu" else distributed.new_group(backend="gloo")
