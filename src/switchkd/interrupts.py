"""Ctrl-C, SIGTERM and SIGHUP: a command ends in good order, and its exit code says by which."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    process = os.getpid()

    def received(number: int, frame: object) -> None:
        if os.getpid() == process:
            handle(number)

    previous = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        for number, handler in previous.items():
            if handler is not signal.SIG_IGN:
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
