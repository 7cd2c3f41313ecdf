"""Figure 1: whatever kills a run, and whatever its disk refuses, an acknowledged checkpoint stays and the run goes on by itself."""

import os
import random
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from killed_runs import STAGE, KilledRun, undisturbed, write_recipe
from lives import End, Life, Nursery, Trouble, live

STEPS = 12


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One that another user may enter, which those of pytest are not."""
    with tempfile.TemporaryDirectory(prefix="switchkd-kills-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def recipe(folder):
    return write_recipe(folder, max_steps=STEPS)


@pytest.fixture(scope="module")
def nursery(recipe):
    with Nursery(recipe) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def reference(nursery, folder):
    return undisturbed(nursery, folder / "undisturbed")


def may_mount() -> bool:
    """Whether a file system can be mounted here."""
    with tempfile.TemporaryDirectory() as name:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", name], capture_output=True).returncode == 0
        return mounted and subprocess.run(["umount", name], check=True).returncode == 0


def some_end(draw: random.Random, operations: int) -> End:
    """Half at a file operation of a save, the others at any moment: of a save, of a step, of a start."""
    kind = draw.random()
    if kind < 0.5:
        return End(operation=draw.randint(1, operations), save=draw.choice((1, 1, 2)))
    if kind < 0.7:
        return End(after_saving=draw.uniform(0, 0.3))
    if kind < 0.9:
        return End(batch=draw.randint(1, 4))
    return End(after_birth=draw.uniform(0.1, 3))


@pytest.mark.long
def test_killed_at_any_moment(nursery, reference, folder, figure, whole):
    wanted = (
        {"kills": 500, "mid-save": 200, "after an acknowledged save": 400}
        if whole
        else {"kills": 8, "mid-save": 2, "after an acknowledged save": 2}
    )
    draw, hit = random.Random(11), Counter()

    def lacking() -> bool:
        return any(hit[name] < count for name, count in wanted.items())

    while lacking():
        run = KilledRun(nursery, folder / f"run-{hit['runs']}", reference)
        hit["runs"] += 1
        while not run.finished:
            life = run.live(some_end(draw, reference.operations) if lacking() else None)
            hit["kills"] += life.killed
            hit["mid-save"] += life.mid_save
            hit["after an acknowledged save"] += life.killed and bool(run.acknowledged)
        hit["finished"] += 1
        run.remove()
    assert hit["finished"] == hit["runs"]
    for name, count in wanted.items():
        assert hit[name] >= count, hit
    figure(
        "1. kills",
        f"{hit['kills']} SIGKILLs, {hit['mid-save']} of them mid-save, {hit['after an acknowledged save']} after an acknowledged save",
        f"0 acknowledged checkpoints lost, 0 manual steps, {hit['finished']} of {hit['runs']} students bit-identical",
    )


@pytest.mark.slow  # its short form too
def test_killed_through_all_that_a_run_does(recipe, reference, folder, figure, whole):
    """Models loaded anew and the doctor asked at every start, which the lives of a nursery leave out."""
    run = KilledRun(nursery=None, output=folder / "all-of-it", reference=reference)  # type: ignore[arg-type]
    kills = 0

    def complete(fields: tuple[str, ...], *, end: End | None, trouble: Trouble | None) -> Life:
        return live(recipe, fields, end=end, doctor=True)[0]

    run.nursery = type("Complete", (), {"live": staticmethod(complete)})()
    for save in (2, 3, 2, 4) if whole else (3,):
        kills += run.live(End(operation=reference.operations // 2, save=save)).mid_save
    run.live()
    assert run.finished
    assert kills == (4 if whole else 1)
    figure(
        "1. kills, with doctor and loading",
        f"{kills} SIGKILLs mid-save",
        "0 lost, 0 manual steps, student bit-identical",
    )


@pytest.mark.slow  # its short form too
def test_a_disk_that_is_full(nursery, reference, folder, figure, whole):
    """No file may grow beyond so many bytes: the system refuses the write, whoever makes it."""
    draw, refused, messages = random.Random(5), 0, Counter()
    sizes = sorted(file.stat().st_size for file in (reference.run / STAGE / "checkpoint-1").iterdir())
    for number in range(4 if whole else 1):
        run = KilledRun(nursery, folder / f"full-{number}", reference)
        while not run.finished:
            run.live(End(operation=draw.randint(1, reference.operations), save=2))  # some steps
            if refused < (40 if whole else 3) and not run.finished:
                life = run.live(trouble=Trouble(max_file_bytes=draw.randint(600, sizes[-1] - 1)))
                assert life.exit_code == 1, "a disk that takes no more was not noticed"
                assert life.error
                refused += 1
                messages[life.error.partition(":")[0]] += 1
        run.remove()
    assert refused >= (12 if whole else 2), refused
    figure(
        "1. full disk, files limited",
        f"{refused} runs that could not write on",
        "exit 1 each time, 0 lost, 0 manual steps",
    )


@pytest.mark.slow  # its short form too
@pytest.mark.skipif(
    not may_mount(), reason="nothing can be mounted here; the test above limits the size of files instead"
)
def test_a_small_disk_that_is_full(nursery, reference, folder, figure, whole):
    """A file system of its own, where one may be mounted."""
    disk = folder / "small-disk"
    disk.mkdir(exist_ok=True)
    need = sum(file.stat().st_size for file in (reference.run / STAGE / "checkpoint-1").iterdir())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={3 * need + 400_000}", "tmpfs", disk], check=True)
    try:
        refused = 0
        run = KilledRun(nursery, disk / "run", reference)
        run.live(End(operation=5, save=3))
        for number in range(20 if whole else 2):
            free = shutil.disk_usage(disk).free
            (disk / "ballast").write_bytes(b"\0" * max(0, free - number * need // 20))
            life = run.live(trouble=Trouble())
            refused += life.exit_code == 1
            (disk / "ballast").unlink()
            if number % 3 == 2 and not run.finished:
                run.live(End(operation=5, save=2))
            if run.finished:
                break
        run.live()
        assert run.finished
        assert refused >= (8 if whole else 2), refused
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    figure(
        "1. full disk, a small file system",
        f"{refused} runs on a disk without room",
        "exit 1 each time, 0 lost, 0 manual steps",
    )


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can write below `folder`: root may in spite of its mode, so for root it is mounted read-only over itself."""
    if os.geteuid() != 0:
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
        for path in modes:
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield
        for path, mode in modes.items():
            path.chmod(mode)
        return
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow  # its short form too
@pytest.mark.skipif(
    os.geteuid() == 0 and not may_mount(), reason="root may write anywhere, and nothing can be mounted here"
)
@pytest.mark.parametrize("which", ["output", "stage"])
def test_a_folder_that_may_not_be_written_to(nursery, reference, folder, figure, whole, which):
    run = KilledRun(nursery, folder / f"read-only-{which}", reference)
    run.live(End(operation=9, save=3))
    refused = 0
    while refused < (4 if whole else 1):
        with read_only(run.output if which == "output" else run.output / STAGE):
            life = run.live(trouble=Trouble())
        assert life.exit_code == 1
        assert "Read-only file system" in str(life.error) or "Permission denied" in str(life.error)
        refused += 1
        run.live(End(operation=9, save=2))
    run.live()
    assert run.finished
    figure(
        f"1. read-only folder, {which}",
        f"{refused} runs that may not write",
        "exit 1 each time, 0 lost, 0 manual steps",
    )
