"""What README.md shows runs."""

import re
from pathlib import Path

import pytest
import torch
from run_files import write_data, write_model

from switchkd.batch import TEACHER
from switchkd.commands import VERBS
from switchkd.methods import SwitchKD
from switchkd.recipe.schema import load_recipe
from switchkd.train.step import DistillationStep

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """Tiny models and data where README says that the demo leaves its own."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "runs/demo/teacher", seed=1, hidden=40, depth=3)
    for student in ("student-init", "switch-kd/student"):
        write_model(tmp_path / "runs/demo" / student, seed=2)
    write_data(tmp_path / "runs/demo/data/train.json", 2)


@pytest.mark.usefixtures("demo")
def test_the_python_of_the_readme_is_switch_kd():
    switch, example, plain = blocks("python")
    names: dict = {}
    exec(example, names)
    student, teacher, z, loss = names["student"], names["teacher"], names["z"], names["loss"]
    terms = SwitchKD().token_terms(z)
    torch.testing.assert_close(loss, torch.stack([term.values for term in terms.values()]).sum(dim=0).mean())
    batch = names["collator"]([names["rows"][0], names["rows"][1]])
    sums = DistillationStep(names["pair"], SwitchKD())(batch)
    torch.testing.assert_close(sums.loss / sums.answers, loss, rtol=1e-4, atol=1e-4)
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in student.part("vision")[0].parameters()
    )
    assert all(parameter.grad is None for parameter in teacher.model.parameters())

    names |= {"inputs": batch.student, "y": z.targets, "z_teacher": z.compared[TEACHER].teacher}
    exec(switch, names)
    torch.testing.assert_close(names["loss"].mean(), loss, rtol=1e-4, atol=1e-4)

    exec(plain, names)
    assert type(names["model"]).__module__.startswith("transformers.")


def test_the_yaml_of_the_readme_is_a_recipe(tmp_path):
    (block,) = blocks("yaml")
    (tmp_path / "recipe.yaml").write_text(block)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.method == SwitchKD(align=1.0, switch=1.0)
    assert recipe.evaluate is not None


def test_it_is_short_and_begins_with_what_a_user_gets():
    assert len(README.split()) <= 900
    assert re.findall(r"!\[.*?\]\((.*?)\)", README) == ["docs/study-tiny.svg", "docs/switch.svg"]
    assert re.findall(r"^pip install \S+", README, re.MULTILINE) == ["pip install .", 'pip install ".[gpu]"']


def test_every_command_is_one_that_is_there():
    named = {verb.__name__.lower() for verb in VERBS}
    assert set(re.findall(r"^switchkd (\w+)", README, re.MULTILINE)) == {
        "recipe", "convert", "init", "data", "doctor", "train", "evaluate", "study", "report", "chat", "export",
    }  # fmt: skip
    assert set(re.findall(r"\bswitchkd ([a-z]+)", README)) - {"implements", "import"} <= named
