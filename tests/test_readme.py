"""What README.md shows runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from run_files import COLOURS, write_data, write_model
from tiny import IMAGE_SIZE

from switchkd.batch import TEACHER
from switchkd.cli import main
from switchkd.commands import VERBS
from switchkd.methods import SwitchKD
from switchkd.models.families import FAMILIES
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


def test_videos_are_refused_where_a_family_reads_none():
    assert "Rows with videos are refused by families that do not read videos." in " ".join(README.split())
    assert {family.video_inputs is None for family in FAMILIES.values()} == {True, False}


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


#: Begins of commands that ask for more than tiny files, and the tests that run them.
ELSEWHERE = {
    "switchkd convert": "convert/test_tinyllava_recipe.py",
    "switchkd init": "convert/test_student.py",
    "switchkd evaluate runs/mine/student --benchmarks": "evaluate/test_benchmark_data.py",
    "switchkd study": "study/test_run_study.py",
    "switchkd chat --web": "chat/test_web_page.py",
}


def test_commands_that_are_not_run_here_are_run_elsewhere():
    lines = re.findall(r"^switchkd .*$", README, re.MULTILINE)
    for begin, file in ELSEWHERE.items():
        assert sum(line.startswith(begin) for line in lines) == 1, begin
        assert (Path(__file__).parent / file).is_file(), file


@pytest.mark.slow
def test_the_other_commands_run_as_they_are_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name, seed, sizes in (("llava-3b", 1, {"hidden": 40, "depth": 3}), ("student", 2, {})):
        write_model(Path("checkpoints") / name, seed=seed, **sizes)
    Path("TEACHER").symlink_to("checkpoints/llava-3b")
    Path("STUDENT").symlink_to("checkpoints/student")
    for file, rows in (
        ("data.json", 24),
        ("test.json", 3),
        ("data/llava_v1_5_mix665k.json", 24),
        ("data/test.json", 3),
    ):
        write_data(Path(file).absolute(), rows)
    Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), COLOURS["red"]).save("red.png")
    Path("mine.csv").write_text("image,question,answer\nred.png,What colour is it?,red\n")
    lines = [line.partition("#")[0] for line in re.findall(r"^switchkd .*$", README, re.MULTILINE)]
    commands = [shlex.split(line)[1:] for line in lines if not line.startswith(tuple(ELSEWHERE))]
    assert [command[0] for command in commands] == ["data", "recipe", "doctor", "train", "evaluate", "report", "export"]
    for command in commands:
        if command[0] == "doctor":  # of the recipe that README shows
            Path("recipe.yaml").write_text(blocks("yaml")[0])
        if command[0] == "report":
            plain = ["--method.name", "sft", "--train.output", "runs/sft"]
            assert main(["train", "recipe.yaml", *plain]) == 0, capfd.readouterr().err[-2000:]
        assert main(command) == 0, (command, capfd.readouterr().err[-2000:])
    page = Path("report.html").read_text(encoding="utf-8")
    assert ">mine<" in page
    assert ">sft<" in page
    assert (
        Path("exported/model.safetensors").stat().st_size < Path("runs/mine/student/model.safetensors").stat().st_size
    )
