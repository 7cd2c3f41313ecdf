"""What one process of a run finds out for all of them."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list

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
