"""Processes beside each other: how many, what they take, and that none is left behind."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from switchkd.study import jobs
from switchkd.study.jobs import Job, run_jobs
from switchkd.study.plan import Cell
from switchkd.train.recipe import load_recipe

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Jobs run this text in Python instead of `switchkd`; returns a maker of jobs with arguments for it."""

    def script(text):
        monkeypatch.setattr(jobs, "_COMMAND", (sys.executable, "-c", text))

        def job(name, *arguments, cell=None):
            return Job(name, arguments, tmp_path / f"{name}.log", resumed=False, cell=cell)

        return job

    return script


LIFETIME = """
import sys, time
with open(sys.argv[1], "w") as file:
    file.write(f"{time.time()} ")
time.sleep(0.6)
with open(sys.argv[1], "a") as file:
    file.write(str(time.time()))
"""


def overlap(folder, names):
    """The most jobs that were alive at one time."""
    spans = [tuple(map(float, (folder / name).read_text().split())) for name in names]
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_as_many_as_asked_for(script, tmp_path, at_a_time):
    job = script(LIFETIME)
    made = [job(name, str(tmp_path / name)) for name in "abc"]
    ended = [(done.name, end.code) for done, end in run_jobs(made, at_a_time=at_a_time, threads=1)]
    assert sorted(ended) == [("a", 0), ("b", 0), ("c", 0)]
    assert overlap(tmp_path, "abc") == at_a_time


@pytest.mark.parametrize(("free_gib", "beside"), [(1, 1), (64, 2)])
def test_no_more_than_memory_holds(script, tmp_path, monkeypatch, free_gib, beside):
    free = type("Memory", (), {"available": free_gib * 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    job = script(LIFETIME)
    made = [job(name, str(tmp_path / name)) for name in "ab"]  # each may take a GiB, and the first grows to it
    assert len(list(run_jobs(made, at_a_time=2, threads=1))) == 2
    assert overlap(tmp_path, "ab") == beside


def test_a_cell_without_an_estimate_runs_alone_until_it_has_been_measured(script, tmp_path):
    job = script(LIFETIME)
    cell = Cell("arm", 0, None, load_recipe(TINY, ["--student.path", str(tmp_path / "none")]))
    made = [job(name, str(tmp_path / name), cell=cell) for name in "abc"]
    assert len(list(run_jobs(made, at_a_time=3, threads=1))) == 3
    spans = {name: tuple(map(float, (tmp_path / name).read_text().split())) for name in "abc"}
    assert spans["a"][1] <= min(spans["b"][0], spans["c"][0])
    assert overlap(tmp_path, "bc") == 2


def test_what_a_job_took(script):
    job = script("x = bytearray(300 << 20); n = sum(range(20_000_000))")
    ((_, end),) = run_jobs([job("a")], at_a_time=1, threads=1)
    assert end.code == 0
    assert end.peak_rss_bytes > 300 << 20
    assert end.cpu_seconds > 0
    assert end.seconds > 0


def test_threads_logs_and_exit_codes(script, tmp_path):
    job = script("import os, sys; print(os.environ['OMP_NUM_THREADS']); print('bad', file=sys.stderr); sys.exit(3)")
    ((_, end),) = run_jobs([job("a")], at_a_time=1, threads=5)
    assert end.code == 3
    assert sorted((tmp_path / "a.log").read_text().split()) == ["5", "bad"]


def test_a_caller_that_stops_leaves_no_process_behind(script, tmp_path):
    job = script("import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(float(sys.argv[2]))")
    running = run_jobs(
        [job("a", str(tmp_path / "a"), "0"), job("b", str(tmp_path / "b"), "60")], at_a_time=2, threads=1
    )
    next(running)
    while not (tmp_path / "b").exists() or not (tmp_path / "b").read_text():
        time.sleep(0.05)
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "b").read_text()), 0)
