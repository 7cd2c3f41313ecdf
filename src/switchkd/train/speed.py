"""How fast a stage learns, and what it takes of memory."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch

from switchkd.train.operations import CountOperations
from switchkd.train.peak import Peak


class Speed:
    """Counts tokens and samples of all processes, for what is said of them now and then.

    Operations are counted in one micro-batch of every kind, and later tokens of that kind are taken to cost as many: counting them takes
    longer than launching them. Kinds are steps that need other pathways.

    Args:
        processes: among which the tokens are spread.
        peak: what operations are held against.
    """

    def __init__(self, processes: int = 1, peak: Peak | None = None) -> None:
        self.processes = processes
        self.peak = peak or Peak()
        self._per_token = dict[Hashable, float]()
        self._tokens, self._samples = Counter[Hashable](), 0
        self._first, self._begun = 0, time.monotonic()
        self._since = self._begun

    def count(self, tokens: int, samples: int, kind: Hashable = None) -> None:
        """Count a step: all tokens that the student reads of it, those of prompts and images included, without padding."""
        self._tokens[kind] += tokens
        self._samples += samples

    def knows_operations(self, kind: Hashable = None) -> bool:
        """Whether `operations` has counted a step of this kind."""
        return kind in self._per_token

    @contextmanager
    def operations(self, tokens: int, kind: Hashable = None) -> Iterator[None]:
        """Count the operations of one micro-batch of this process, which has so many tokens."""
        with CountOperations() as counted:
            yield
        self._per_token[kind] = counted.total / tokens

    def begin(self, step: int) -> None:
        """Training begins behind this step."""
        self._tokens, self._samples = Counter(), 0
        self._first, self._begun = step, time.monotonic()
        self._since = self._begun

    def leave_out(self, seconds: float) -> None:
        """Of the time since then, these were spent on something else."""
        self._begun += seconds
        self._since += seconds

    def since_last(self, step: int, steps: int) -> str:
        """Tokens and samples per second since the last time this was asked, operations per second and their share of the peak, peak
        memory, and the time left at the pace so far.
        """
        now = time.monotonic()
        seconds, each = max(now - self._since, 1e-9), (now - self._begun) / max(step - self._first, 1)
        said = (
            f"{self._tokens.total() / seconds:,.0f} tokens/s",
            f"{self._samples / seconds:,.1f} samples/s",
            *self._reached(seconds),
            f"{peak_memory() / 2**30:.1f} GiB at most",
            f"{timedelta(seconds=round(each * (steps - step)))} left",
        )
        self._tokens, self._samples = Counter(), 0
        self._since = now
        return "  ".join(said)

    def _reached(self, seconds: float) -> list[str]:
        """TFLOP/s of one device, and its MFU; nothing where a kind of step has not been counted."""
        if not self._per_token or not all(map(self.knows_operations, self._tokens)):
            return []
        operations = sum(self._per_token[kind] * tokens for kind, tokens in self._tokens.items())
        tflops = operations / seconds / self.processes / 1e12
        each = " per process" if self.processes > 1 else ""
        return [f"{tflops:.3g} TFLOP/s{each}", *self.peak.shares(tflops)]


def peak_memory() -> int:
    """Bytes: of tensors on the GPU in use, or, without one, of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
