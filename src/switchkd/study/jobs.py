"""Run commands in processes of their own, a fixed number at a time, each on one of the given GPUs."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from switchkd.study.plan import Cell

_COMMAND = (sys.executable, "-m", "switchkd.cli")
_log = logging.getLogger(__name__)
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
    gpu: int | None


def run_jobs(
    jobs: Sequence[Job], *, at_a_time: int, threads: int, gpus: Sequence[int] = (), keep_open: tuple[int, ...] = ()
) -> Iterator[tuple[Job, End]]:
    """Run all jobs in order, `at_a_time` of them side by side, and yield each as it ends.

    If the caller stops, or fails, all processes are ended.

    Args:
        jobs: what to run.
        at_a_time: how many processes run at once.
        threads: CPU threads of each.
        gpus: ids of GPUs; each job sees one of them alone, the one with the fewest jobs. Empty: all jobs see what this process sees.
        keep_open: file descriptors that the processes inherit.
    """
    waiting, running, done = list(jobs), list[_Running](), 0
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                gpu = min(gpus, key=[one.gpu for one in running].count) if gpus else None
                running.append(_start(waiting.pop(0), gpu, threads, keep_open))
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
                yield one.job, end
    finally:
        _end_all(running)


def _end_all(running: list[_Running]) -> None:
    """Have every process end: a cell saves the step that it is in. Where this is interrupted too, they are killed."""
    if running:
        _log.info("ending %d processes; what was begun goes on with the same command", len(running))
    try:
        for one in running:
            os.kill(
                one.process.pid, signal.SIGTERM
            )  # to it alone: the workers of its data loader have the rows of that step
        for one in running:
            one.process.wait()
    except BaseException:
        for one in running:
            if one.process.poll() is None:
                os.killpg(one.process.pid, signal.SIGKILL)
                one.process.wait()
        raise


def _start(job: Job, gpu: int | None, threads: int, keep_open: tuple[int, ...]) -> _Running:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
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
    return _Running(job, process, time.monotonic(), gpu)


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
