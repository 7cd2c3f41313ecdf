"""Processes side by side: how many, what they take, and that none is left behind."""

import os
import signal
import sys
import time

import pytest

from switchkd.interrupts import Interrupted, ended_by_signals
from switchkd.study import jobs
from switchkd.study.jobs import Job, run_jobs


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Jobs run this text in Python instead of `switchkd`; returns a maker of jobs with arguments for it."""

    def script(text):
        monkeypatch.setattr(jobs, "_COMMAND", (sys.executable, "-c", text))

        def job(name, *arguments):
            return Job(name, arguments, tmp_path / f"{name}.log", resumed=False)

        return job

    return script


#: Ends well if what it was told is true: that it is `alone` in the folder, or `together` with another job, which it waits for.
MEETING = """
import sys, time
from pathlib import Path
folder, name, told = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
alive = folder / f"{name}.alive"
alive.touch()
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
alive.unlink()
sys.exit(met != (told == "together"))
"""


@pytest.mark.parametrize(("at_a_time", "told"), [(1, "alone"), (2, "together")])
def test_as_many_as_asked_for(script, tmp_path, at_a_time, told):
    job = script(MEETING)
    made = [job(name, str(tmp_path), name, told) for name in "ab"]
    ended = [(done.name, end.code) for done, end in run_jobs(made, at_a_time=at_a_time, threads=1)]
    assert sorted(ended) == [("a", 0), ("b", 0)]


def test_each_job_sees_the_gpu_with_the_fewest_jobs(script, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    job = script("import os, sys; open(sys.argv[1], 'w').write(os.environ['CUDA_VISIBLE_DEVICES'])")

    def seen(names, gpus, at_a_time):
        made = [job(name, str(tmp_path / name)) for name in names]
        assert [end.code for _, end in run_jobs(made, at_a_time=at_a_time, threads=1, gpus=gpus)] == [0] * len(names)
        return [(tmp_path / name).read_text() for name in names]

    assert seen("abcd", (3, 1), 4) == ["3", "1", "3", "1"]
    assert seen("ef", (3, 1), 1) == ["3", "3"]  # it is free again
    assert seen("g", (), 1) == ["5"]


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


#: Tells its parent to end when it has been started, and says in a file that it was asked to save.
SAVING = """
import os, signal, sys, time
def save(*_):
    open(sys.argv[1], "w").write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), int(sys.argv[2]))
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_driver_has_its_jobs_save_and_ends_it(script, tmp_path, number):
    job = script(SAVING)
    made = [job("a", str(tmp_path / "a"), str(int(number)))]
    with pytest.raises(Interrupted, match=f"ended by {number.name}") as ended, ended_by_signals():
        list(run_jobs(made, at_a_time=1, threads=1))
    assert ended.value.code == 128 + number
    assert (tmp_path / "a").read_text() == "saved"
