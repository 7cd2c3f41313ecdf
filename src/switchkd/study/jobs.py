"""Run commands in processes of their own, several at a time, as many as memory holds."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from switchkd.study.plan import Cell
from switchkd.train.memory import estimate_longest

_COMMAND = (sys.executable, "-m", "switchkd.cli")
_log = logging.getLogger(__name__)
#: What a process takes on top of the estimate: libraries, and on a GPU the CUDA context.
_PROCESS_BYTES = 2**30
#: How long the driver sleeps between looks at its processes.
_TICK = 0.2


@dataclass(frozen=True)
class Job:
    """One command of `switchkd`."""

    name: str
    arguments: tuple[str, ...]
    log: Path
    #: Whether an earlier, killed process did a part of it: its seconds then say nothing.
    resumed: bool
    cell: Cell | None = None


@dataclass(frozen=True)
class End:
    """How a job ended and what it took. Its fields stand in a cell's record."""

    code: int
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    resumed: bool


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    begin: float
    #: None: unknown.
    bytes: int | None
    gpu: int | None


def run_jobs(
    jobs: Sequence[Job], *, at_a_time: int, threads: int, keep_open: tuple[int, ...] = ()
) -> Iterator[tuple[Job, End]]:
    """Run all jobs in order and yield each as it ends.

    `at_a_time` processes run beside each other, or fewer where the memory that is free does not hold one more by its estimate (of an arm
    that has ended already: its measured peak). A job without an estimate runs alone. 0: one for each GPU, or for each `threads` cores.
    If the caller stops, or fails, all processes are ended.
    """
    gpus = torch.cuda.device_count()
    at_a_time = at_a_time or gpus or max(1, (os.cpu_count() or 1) // threads)
    waiting, running, done = list(jobs), list[_Running](), 0
    measured: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                gpu = min(range(gpus), key=[r.gpu for r in running].count) if gpus else None
                need = _need(waiting[0], measured)
                if running and not _fits(need, running, gpu):
                    break
                running.append(_start(waiting.pop(0), need, gpu, threads, keep_open))
            time.sleep(_TICK)
            for one in list(running):
                end = _ended(one)
                if end is None:
                    continue
                running.remove(one)
                done += 1
                _log.info(
                    "%d of %d: %s, %.0f s%s",
                    done,
                    len(jobs),
                    one.job.name,
                    end.seconds,
                    "" if end.code == 0 else f": failed, {one.job.log}",
                )
                if one.job.cell is not None and end.code == 0 and one.gpu is None:
                    measured[one.job.cell.arm] = max(end.peak_rss_bytes, measured.get(one.job.cell.arm, 0))
                yield one.job, end
    finally:
        for one in running:
            os.killpg(one.process.pid, signal.SIGTERM)
            one.process.wait()


def _need(job: Job, measured: dict[str, int]) -> int | None:
    """The bytes of a job at its peak; None where nobody knows."""
    if job.cell is None:
        return _PROCESS_BYTES
    if job.cell.arm in measured:
        return measured[job.cell.arm]
    try:
        peaks = [estimate_longest(job.cell.recipe, stage).peak for stage in job.cell.recipe.resolved_stages()]
    except ValueError as reason:
        _log.info("%s runs alone, because its memory is not known beforehand: %s", job.name, reason)
        return None
    return max(peaks) + _PROCESS_BYTES


def _fits(need: int | None, running: Sequence[_Running], gpu: int | None) -> bool:
    """Whether a process that needs so much fits beside those that run, if these grow to what they need themselves."""
    beside = [one for one in running if one.gpu == gpu]
    if need is None or any(one.bytes is None for one in beside):
        return not beside
    if gpu is None:
        free = psutil.virtual_memory().available
        growth = sum(max(0, (one.bytes or 0) - _resident(one.process.pid)) for one in beside)
        return free - growth >= need
    total = torch.cuda.get_device_properties(gpu).total_memory
    return total - sum(one.bytes or 0 for one in beside) >= need


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _start(job: Job, need: int | None, gpu: int | None, threads: int, keep_open: tuple[int, ...]) -> _Running:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [*_COMMAND, *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,  # a signal to the study does not reach it twice
            pass_fds=keep_open,
        )
    return _Running(job, process, time.monotonic(), need, gpu)


def _ended(one: _Running) -> End | None:
    pid, status, usage = os.wait4(one.process.pid, os.WNOHANG)
    if pid == 0:
        return None
    one.process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = time.monotonic() - one.begin
    return End(
        one.process.returncode, round(seconds, 1), round(usage.ru_utime + usage.ru_stime, 1), peak, one.job.resumed
    )
