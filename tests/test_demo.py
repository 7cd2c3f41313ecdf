"""The demo from start to end, made short: what it leaves, and that both students start and are asked alike."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from run_files import ANSWER_ALONE

from switchkd import demonstration as demo
from switchkd import world
from switchkd.recipe.schema import load_recipe

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    short = yaml.safe_load(world.recipe_path().read_text())
    short["train"] |= {"max_steps": 3, "logging_steps": 1, "save_steps": 3}
    (folder / "short.yaml").write_text(yaml.safe_dump(short))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TRAIN", 24)
        patch.setattr(demo, "TEST", 2)
        patch.setattr(world, "recipe_path", lambda: folder / "short.yaml")
        demo.main(seed=5, output=folder / "out")
        demo.main(seed=5, output=folder / "out")  # goes on where it stopped, and finds everything done
    return folder / "out"


def test_the_demo_leaves_what_it_promises(finished):
    assert {path.name for path in finished.iterdir()} == {
        "data", "report.html", "results.json", "seed", "sft", "student-init", "switch-kd", "table.md", "teacher",
        "teacher.results.json", "teacher.results.predictions.jsonl",
    }  # fmt: skip
    table = json.loads((finished / "results.json").read_text())
    assert set(table) == {*world.KINDS, "mean of kinds", "all questions"}
    for row in table.values():
        assert row["Switch-KD − SFT"] == pytest.approx(row["Switch-KD"] - row["SFT"])
    assert (
        (finished / "table.md")
        .read_text()
        .startswith("| kind | teacher | SFT | Switch-KD | Switch-KD − SFT | 95 % interval |")
    )
    page = (finished / "report.html").read_text()
    assert all(f">{name}<" in page for name in ("teacher", "sft", "switch-kd"))
    assert "of 20 test questions" in page or "20 questions" in page


def test_both_students_differ_in_the_method_alone(finished):
    sft, switch = (load_recipe(finished / folder / "recipe.yaml") for folder in ("sft", "switch-kd"))
    assert (sft.method.name, switch.method.name) == ("sft", "switch_kd")
    assert sft.student == switch.student
    assert sft.data == switch.data
    assert {**vars(sft.train), "output": None} == {**vars(switch.train), "output": None}
    asked = [
        json.loads((finished / folder / "results.json").read_text())["data_fingerprint"]
        for folder in ("sft", "switch-kd")
    ]
    assert asked[0] == asked[1]


@pytest.mark.slow  # for one student, tests/test_distill.py does it
def test_the_students_answer_where_switchkd_cannot_be_imported(finished):
    for folder in ("sft", "switch-kd"):
        image = finished / "data" / "images" / "test" / "00000.png"
        command = [sys.executable, "-c", ANSWER_ALONE, str(finished / folder / "student"), str(image)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("answered")


def test_another_seed_does_not_mix_with_a_demo_that_is_there(finished):
    with pytest.raises(ValueError, match=r"is not a demo with seed 6 \(found 5\)"):
        demo.main(seed=6, output=finished)
    with pytest.raises(ValueError, match=r"is not a demo with seed 6 \(found no seed\)"):
        demo.main(seed=6, output=finished / "data")
