"""Figure 1, power loss: what was not flushed is dropped, and an acknowledged checkpoint is still there."""

import random
import shutil
from collections import Counter

import pytest
from killed_runs import KilledRun, undisturbed, write_recipe
from lives import End, Nursery
from power_loss import PowerLoss


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    with Nursery(write_recipe(tmp_path_factory.mktemp("power"), max_steps=6)) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def reference(nursery, tmp_path_factory):
    return undisturbed(nursery, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.long
def test_power_that_fails_at_any_moment(nursery, reference, tmp_path, figure, whole):
    draw, hit = random.Random(3), Counter()
    wanted = 60 if whole else 4
    while hit["losses"] < wanted:
        run = KilledRun(nursery, tmp_path / "run", reference, log_may_miss_lines=True)
        for turn in range(3 if whole else 2):
            left = tmp_path / "left"
            power = PowerLoss(draw.choice(["none", "all", "some"]), seed=draw.randrange(10**6), into=left)
            # at the first operation of a save, the one before has been acknowledged
            operation = 1 if turn == 0 else draw.randint(1, reference.operations)
            life = run.nursery.live(
                ("--train.output", str(run.output)),
                end=End(operation=operation, save=2 if turn == 0 else 1, power=power),
            )
            assert life.killed, life.error
            ((files, names),) = life.of("dropped")
            hit.update({"losses": 1, "files cut": files, "names undone": names, power.names: 1})
            for stage, step in life.acknowledged:
                run.acknowledged[stage] = step
            hit["after an acknowledged save"] += bool(run.acknowledged)
            if run.output.exists():
                shutil.rmtree(run.output)
            left.rename(run.output)
            run.check()
        run.live()
        assert run.finished
        hit["finished"] += 1
        run.remove()
    assert hit["files cut"] > hit["losses"]
    assert hit["names undone"] > hit["losses"] // 2
    assert hit["after an acknowledged save"] == hit["losses"]
    figure(
        "1. power loss, simulated",
        f"{hit['losses']} in saves, {hit['files cut']} files cut or emptied, {hit['names undone']} changes of names undone",
        f"0 acknowledged checkpoints lost, 0 manual steps, {hit['finished']} students bit-identical",
    )


def test_the_simulation_drops_what_is_not_flushed(tmp_path):
    """Its own control: the same file with and without a flush, and a name that is or is not flushed."""
    import os

    from power_loss import DiskWithoutPower

    from switchkd.files import flush

    root = tmp_path / "disk"
    root.mkdir()
    (root / "old").write_text("old")
    disk = DiskWithoutPower(root)
    plain_fsync = os.fsync
    try:
        os.fsync = lambda descriptor: (plain_fsync(descriptor), disk.flushed(descriptor))[0]
        for name in ("flushed", "bytes-only"):
            (root / name).write_text(name)
            flush(root / name)
            if name == "flushed":
                flush(root)
        (root / "old").write_text("new")
    finally:
        os.fsync = plain_fsync
    found = {}
    for names in ("none", "all"):
        disk.fail(PowerLoss(names, 0, tmp_path / names))
        found[names] = {path.name: path.read_text() for path in (tmp_path / names).iterdir()}
    assert found["none"] == {"old": "old", "flushed": "flushed"}
    assert found["all"] == {"old": "old", "flushed": "flushed", "bytes-only": "bytes-only"}
