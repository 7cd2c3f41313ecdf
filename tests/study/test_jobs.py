"""Processes beside each other: how many, what they take, and that none is left behind."""

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from switchkd.recipe.schema import load_recipe
from switchkd.study import jobs
from switchkd.study.jobs import Job, run_jobs
from switchkd.study.plan import Cell

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


#: Ends well if what it was told is true: that it is `alone` in the folder, or `together` with another job, which it waits for.
MEETING = """
import sys, time
from pathlib import Path
folder, name, told = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
mine = folder / f"{name}.alive"
mine.touch()
others = lambda ending: [file for file in folder.glob(f"*.{ending}") if file.stem != name]
def await_(ending, seconds):
    end = time.monotonic() + seconds
    while not others(ending) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(others(ending))
met = await_("alive", 60 if told == "together" else 0.3)
if met:
    (folder / f"{name}.met").touch()
    met = await_("met", 60)
mine.unlink()
sys.exit(met != (told == "together"))
"""


@pytest.mark.parametrize(("at_a_time", "told"), [(1, "alone"), (2, "together")])
def test_as_many_as_asked_for(script, tmp_path, at_a_time, told):
    job = script(MEETING)
    made = [job(name, str(tmp_path), name, told) for name in "ab"]
    ended = [(done.name, end.code) for done, end in run_jobs(made, at_a_time=at_a_time, threads=1)]
    assert sorted(ended) == [("a", 0), ("b", 0)]


@pytest.mark.parametrize(("free_gib", "told"), [(1, "alone"), (64, "together")])
def test_no_more_than_memory_holds(script, tmp_path, monkeypatch, free_gib, told):
    free = type("Memory", (), {"available": free_gib * 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    job = script(MEETING)
    made = [job(name, str(tmp_path), name, told) for name in "ab"]  # each may take a GiB, and the first grows to it
    assert [end.code for _, end in run_jobs(made, at_a_time=2, threads=1)] == [0, 0]


def test_a_cell_without_an_estimate_runs_alone_until_it_has_been_measured(script, tmp_path):
    job = script(MEETING)
    cell = Cell("arm", 0, None, load_recipe(TINY, ["--student.path", str(tmp_path / "none")]))
    made = [
        job(name, str(tmp_path), name, told, cell=cell)
        for name, told in (("a", "alone"), ("b", "together"), ("c", "together"))
    ]
    assert [end.code for _, end in run_jobs(made, at_a_time=3, threads=1)] == [0, 0, 0]


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
