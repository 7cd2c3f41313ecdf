"""Whether losses and gradients are finite, found out without making the host wait for a GPU."""

from collections import deque

import torch
from torch import Tensor


class FiniteWatch:
    """Copies verdicts to the host as they become known; `bad` is on the device at once, and stays 1 from the first NaN or infinity on.

    An optimizer that is given `bad` as `found_inf` leaves weights and moments alone from then on, so that what is learned late can still
    be looked into with the weights of the step that it was about.
    """

    def __init__(self) -> None:
        #: 0 or 1, on the device; None before the first `note`.
        self.bad: Tensor | None = None
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def note(self, value: Tensor, step: int) -> None:
        """Ask whether a loss, or the norm of a gradient, of a step is finite."""
        bad = torch.isfinite(value.detach()).logical_not().float()
        if self.bad is None:
            self.bad = torch.zeros_like(bad)
        torch.maximum(self.bad, bad, out=self.bad)
        self._pending.append((step, bad.to("cpu", non_blocking=True), _behind(bad)))

    def first_bad(self, *, wait: bool) -> int | None:
        """The first step that is known not to be finite; with `wait`, all that was noted is known."""
        while self._pending:
            step, bad, event = self._pending[0]
            if event is not None and not event.query():
                if not wait:
                    return None
                event.synchronize()
            self._pending.popleft()
            if bad.item():  # on the host by now
                return step
        return None

    @property
    def oldest(self) -> int | None:
        """The oldest step of which something is not yet known."""
        return self._pending[0][0] if self._pending else None


def _behind(tensor: Tensor) -> torch.cuda.Event | None:
    """What tells when all that the device has been given so far is done; nothing to wait for on a CPU."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record()
    return event
