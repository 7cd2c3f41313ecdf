"""Figure 4: damage to any file of a checkpoint is noticed, and the one before is gone on from."""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
from killed_runs import STAGE, undisturbed, write_recipe
from lives import Nursery

from switchkd.train import checkpoint


def damage(file: Path, draw: random.Random, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "flipped bit":
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut off":
        del content[draw.randrange(len(content)) :]
    elif kind == "block of zeros":
        begin = draw.randrange(len(content))
        content[begin : begin + 4096] = bytes(len(content[begin : begin + 4096]))
    elif kind == "bytes added":
        content += draw.randbytes(draw.randint(1, 100))
    if kind == "missing":
        file.unlink()
    else:
        file.write_bytes(content)


KINDS = ("flipped bit", "cut off", "missing", "block of zeros", "bytes added")


@pytest.mark.long
def test_damaged_checkpoints_are_noticed(tmp_path, figure, whole):
    draw, hit, wanted = random.Random(4), Counter(), 200 if whole else 10
    resumed = 0
    with Nursery(write_recipe(tmp_path, max_steps=3)) as nursery:
        output = tmp_path / "output"
        undisturbed(nursery, output)
        fields = ("--train.output", str(output), "--train.save-total-limit", "none")
        newest = output / STAGE / "checkpoint-3"
        files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
        number = 0
        while hit.total() < wanted:
            number += 1
            run = tmp_path / "run"
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(output, run)
            shutil.rmtree(run / "student")
            stage, kind = run / STAGE, KINDS[number % len(KINDS)]
            file = stage / "checkpoint-3" / files[number % len(files)]
            before = file.read_bytes()
            damage(file, draw, kind)
            if file.exists() and file.read_bytes() == before:  # zeros over zeros
                continue
            found = checkpoint.damaged(stage / "checkpoint-3")
            assert found, f"{kind} in {file.name} was not noticed"
            assert checkpoint.latest(stage) == stage / "checkpoint-2", f"{kind} in {file.name}"
            hit[kind] += 1
            if hit.total() % (20 if whole else 10) == 0:
                output.rename(tmp_path / "kept")
                run.rename(output)
                life = nursery.live(fields)
                assert life.exit_code == 0, life.error
                assert life.of("resumed") == [(STAGE, 2)]
                shutil.rmtree(output)
                (tmp_path / "kept").rename(output)
                resumed += 1
    assert resumed == wanted // (20 if whole else 10)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(hit.items()))
    figure(
        "4. damaged checkpoints",
        f"{hit.total()}, over {len(files)} files: {kinds}",
        f"{hit.total()} noticed, {hit.total()} fell back, {resumed} of them resumed to the end",
    )
