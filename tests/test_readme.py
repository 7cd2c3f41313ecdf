"""What README.md shows runs."""

import re
from pathlib import Path

import pytest
import torch
from run_files import write_data, write_model
from transformers import AutoProcessor

from switchkd.data.collate import Collator
from switchkd.data.formats import load_rows
from switchkd.methods import SwitchKD
from switchkd.recipe.schema import load_recipe
from switchkd.types import answer_targets

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Tiny models where README says that the demo leaves its own, and a batch for them."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "runs/demo/teacher", seed=1, hidden=40, depth=3)
    for student in ("student-init", "switch-kd/student"):
        write_model(tmp_path / "runs/demo" / student, seed=2)
    write_data(tmp_path / "runs/demo/data/train.json", 2)
    collator = Collator(AutoProcessor.from_pretrained("runs/demo/student-init"), max_length=256)
    return collator(list(load_rows("runs/demo/data/train.json")))


def test_the_python_of_the_readme_is_switch_kd(demo):
    switch, example, plain = blocks("python")
    names: dict = {}
    exec(example, names)
    student, teacher = names["student"], names["teacher"]
    loss = names["loss"](demo)
    routes, y = names["pair"](demo, names["needs"]), answer_targets(demo["labels"])
    terms = SwitchKD().terms(routes, y)
    torch.testing.assert_close(loss, torch.stack(list(terms.values())).sum(dim=0).mean())
    loss.backward()
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in student.part("vision")[0].parameters()
    )
    assert all(parameter.grad is None for parameter in teacher.model.parameters())

    names |= {"batch": demo, "y": y, "z_teacher": routes["teacher"]}
    exec(switch, names)
    torch.testing.assert_close(names["loss"].mean(), loss)

    exec(plain, names)
    assert type(names["model"]).__module__.startswith("transformers.")


def test_the_yaml_of_the_readme_is_a_recipe(tmp_path):
    (block,) = blocks("yaml")
    (tmp_path / "recipe.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.method == SwitchKD(align=1.0, switch=1.0)
    assert recipe.evaluate is not None
