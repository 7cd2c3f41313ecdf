"""How fast a stage learns, and what it takes of memory."""

import resource
import sys
import time
from datetime import timedelta

import torch


class Speed:
    """Counts tokens and samples of all processes, for what is said of them now and then."""

    def __init__(self) -> None:
        self._tokens = self._samples = 0
        self._first, self._begun = 0, time.monotonic()
        self._since = self._begun

    def count(self, tokens: int, samples: int) -> None:
        """Count a step: all tokens that the student reads of it, those of prompts and images included, without padding."""
        self._tokens += tokens
        self._samples += samples

    def begin(self, step: int) -> None:
        """Training begins behind this step."""
        self._tokens = self._samples = 0
        self._first, self._begun = step, time.monotonic()
        self._since = self._begun

    def since_last(self, step: int, steps: int) -> str:
        """Tokens and samples per second since the last time this was asked, peak memory, and the time left at the pace so far."""
        now = time.monotonic()
        seconds, each = max(now - self._since, 1e-9), (now - self._begun) / max(step - self._first, 1)
        said = (
            f"{self._tokens / seconds:,.0f} tokens/s",
            f"{self._samples / seconds:,.1f} samples/s",
            f"{peak_memory() / 2**30:.1f} GiB at most",
            f"{timedelta(seconds=round(each * (steps - step)))} left",
        )
        self._tokens = self._samples = 0
        self._since = now
        return "  ".join(said)


def peak_memory() -> int:
    """Bytes: of tensors on the GPU in use, or, without one, of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
