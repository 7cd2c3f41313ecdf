"""The commands of docs/first_distillation.md, as they are printed, with drawn pictures and tiny models."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from run_files import COLOURS, write_model
from tiny import IMAGE_SIZE

from switchkd.cli import main

PAGE = (Path(__file__).parents[1] / "docs" / "first_distillation.md").read_text(encoding="utf-8")


def write_table(file: Path, pictures: int, header: list[str]) -> None:
    (file.parent / "pictures").mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as table:
        rows = csv.writer(table)
        rows.writerow(header)
        for number in range(pictures):
            colour = list(COLOURS)[number % len(COLOURS)]
            Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), COLOURS[colour]).save(file.parent / f"pictures/{number:03}.png")
            rows.writerow([f"pictures/{number:03}.png", "What colour is it?", colour])


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    write_model(Path("checkpoints/teacher"), seed=1, hidden=40, depth=3)
    write_model(Path("checkpoints/student"), seed=2)
    (header,) = re.findall(r"```text\n(.*)\n", PAGE)
    write_table(Path("mine/train.csv"), 100, header.split(","))
    write_table(Path("mine/test.csv"), 6, header.split(","))
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    Path("mine/recipe.yaml").write_text(recipe)
    commands = re.findall(r"^switchkd .*$", PAGE, re.MULTILINE)
    assert [shlex.split(command)[1] for command in commands] == ["data", "doctor", "train", "evaluate", "evaluate"]
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0, (command, capfd.readouterr().err[-2000:])
    state = json.loads(Path("runs/mine/1-train/checkpoint-25/trainer_state.json").read_text())
    assert state["global_step"] == 25
    assert json.loads(Path("runs/mine/results.json").read_text())["questions"] == 6


def test_the_page_ends_with_pages_that_are_there():
    assert {"which_method.md", "recipes.md", "report.md"} <= set(re.findall(r"\]\((\w+\.md)\)", PAGE))
