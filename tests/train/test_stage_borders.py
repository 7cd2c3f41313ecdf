"""A run that is killed between two stages ends as one that is not."""

import shutil

import pytest
import torch
from run_files import write_run
from safetensors.torch import load_file

from switchkd import distill
from switchkd.methods import METHODS
from switchkd.recipe.schema import load_recipe

#: The one whose stage draws maps of its own; the others take minutes.
SHORT = {"align_kd"}


@pytest.mark.long
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.slow) for n in METHODS])
def test_a_run_killed_between_stages_ends_as_it_would_have(tmp_path, name):
    file = write_run(tmp_path)
    text = file.read_text().replace("name: switch_kd, window: 32", f"name: {name}")
    text = text[: text.index("evaluate:")].replace("max_steps: 6", "max_steps: 2, report_to: []")
    file.write_text(f"{text}stages: [{{name: first}}, {{name: second}}]\n")
    whole = load_file(distill(load_recipe(file)).folder / "model.safetensors")
    first = load_file(next((tmp_path / "run" / "1-first").glob("checkpoint-2")) / "model.safetensors")
    assert any(not torch.equal(whole[key], first[key]) for key in whole)
    for folder in ("2-second", "student"):
        shutil.rmtree(tmp_path / "run" / folder)
    again = load_file(distill(load_recipe(file)).folder / "model.safetensors")
    assert whole.keys() == again.keys()
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []
