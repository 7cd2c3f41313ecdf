"""Questions in batches of about one length, shared among the processes that ask them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from switchkd.agree import in_every_process
from switchkd.console import progress
from switchkd.processes import processes

_T = TypeVar("_T")


def by_length(lengths: Sequence[Any], size: int) -> list[list[int]]:
    """Places in batches, the longest first: what does not fit into memory is seen at once. Equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [order[start : start + size] for start in range(0, len(order), size)]


def ask_batches(batches: Sequence[list[int]], ask: Callable[[list[int]], _T], what: str, *, shared: bool) -> list[_T]:
    """What `ask` gives for each of the batches, in their order.

    Args:
        batches: which are the same however many processes there are, so that answers are, too.
        ask: may be called in any process.
        what: is asked, for the user who waits.
        shared: every process of the run calls this, asks its share, and gets all.

    Raises:
        Exception: what `ask` raises, in whichever process.
    """
    if not shared or processes().num_processes == 1:
        return [ask(batch) for batch in progress(batches, what, len(batches))]

    def ask_own() -> list[_T]:
        state = processes()
        own: Sequence[list[int]] = share(batches, state.process_index, state.num_processes)
        shown = (
            progress(own, f"{what}, each of {state.num_processes} processes", len(own))
            if state.is_main_process
            else own
        )
        return [ask(batch) for batch in shown]

    return together(in_every_process(ask_own))


def share(batches: Sequence[_T], number: int, count: int) -> Sequence[_T]:
    """What process `number` of `count` asks: as long batches as every other."""
    return batches[number::count]


def together(shares: Sequence[Sequence[_T]]) -> list[_T]:
    """The inverse of `share`: what all processes have, in order."""
    return [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]
