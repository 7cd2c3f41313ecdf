"""Ctrl-C, SIGTERM and SIGHUP: a command ends in good order, and its exit code says by which."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Signals that follow the first one this soon are the same wish: `timeout` and `torchrun` signal a process and its whole group.
REPEAT_S = 2.0


class Interrupted(KeyboardInterrupt):
    """A signal ended what was going on. Like a KeyboardInterrupt it passes every `except Exception`."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        #: The exit code of a process that this signal ended, by the custom of shells.
        self.code = 128 + number


@contextmanager
def caught(handle: Callable[[int], None]) -> Iterator[None]:
    """Have `handle` called with the number of a signal, until the block ends.

    A signal that is ignored stays so, as under `nohup`. Nothing is caught outside the main thread, where Python allows none, nor in
    processes that this one forks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process, handled_at = os.getpid(), float("-inf")

    def received(number: int, frame: object) -> None:
        nonlocal handled_at
        if os.getpid() != process or time.monotonic() - handled_at < REPEAT_S:
            return
        handled_at = time.monotonic()
        handle(number)

    handlers = {number: signal.getsignal(number) for number in NUMBERS}
    previous = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in previous:
            signal.signal(number, received)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def ended_by_signals() -> AbstractContextManager[None]:
    """Raise `Interrupted` where a signal comes, so that locks and half-written files are cleared away."""
    return caught(_end)


def _end(number: int) -> None:
    raise Interrupted(number, f"ended by {signal.Signals(number).name}")
