"""Questions in batches of about one length, shared among the processes that ask them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from switchkd.agree import in_every_process
from switchkd.console import progress
from switchkd.processes import processes

_T = TypeVar("_T")


def by_length(lengths: Sequence[Any], size: int) -> list[list[int]]:
    """Places in batches, the longest first: what does not fit into memory is seen at once. Equal lengths keep their order."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [order[start : start + size] for start in range(0, len(order), size)]


def ask_batches(
    batches: Sequence[list[int]], ask: Callable[[list[int]], _T], what: str | None, *, shared: bool
) -> list[_T]:
    """What `ask` gives for each of the batches, in their order.

    Args:
        batches: which are the same however many processes there are, so that answers are, too.
        ask: may be called in any process.
        what: is asked, for the user who waits; None: nothing is shown, where something else is already.
        shared: every process of the run calls this, asks its share, and gets all.

    Raises:
        Exception: what `ask` raises, in whichever process.
    """
    if not shared or processes().num_processes == 1:
        return [ask(batch) for batch in _shown(batches, what)]

    def ask_own() -> list[_T]:
        state = processes()
        own: Sequence[list[int]] = share(batches, state.process_index, state.num_processes)
        label = None if what is None else f"{what}, each of {state.num_processes} processes"
        return [ask(batch) for batch in _shown(own, label if state.is_main_process else None)]

    return together(in_every_process(ask_own))


def _shown(batches: Sequence[_T], what: str | None) -> Iterable[_T]:
    return batches if what is None else progress(batches, what, len(batches))


def share(batches: Sequence[_T], number: int, count: int) -> Sequence[_T]:
    """What process `number` of `count` asks: as long batches as every other."""
    return batches[number::count]


def together(shares: Sequence[Sequence[_T]]) -> list[_T]:
    """The inverse of `share`: what all processes have, in order."""
    return [shares[place % len(shares)][place // len(shares)] for place in range(sum(map(len, shares)))]
