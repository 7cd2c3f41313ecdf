"""`distill(student, teacher, data, output=…)`: names and objects, what comes back, and what is refused."""

import json
from dataclasses import asdict

import pytest
import torch
from datasets import Dataset
from PIL import Image
from run_files import write_data, write_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from switchkd import Distilled, SwitchKD, distill, evaluate, load_recipe
from switchkd.recipe.schema import Data, Evaluate, LoRA, Student, Teacher

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 1, "report_to": []}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    write_model(folder / "student", seed=2)
    write_data(folder / "train.json", 8)
    write_data(folder / "test.json", 2)
    return folder


@pytest.fixture(scope="module")
def named(files):
    """What a run by names leaves."""
    return distill(
        files / "student", files / "teacher", files / "train.json", output=files / "named", evaluate=files / "test.json", **SHORT
    )  # fmt: skip


@pytest.fixture(scope="module")
def opened_again(named, files):
    """What the finished student answers when it is opened."""
    return evaluate(named.folder, files / "test.json")


@pytest.mark.long
def test_the_student_that_is_asked_at_the_end_is_the_one_in_memory(files, named, opened_again):
    log = (files / "named" / "train.log").read_text()
    assert "the student is asked as it is in memory" in log
    mine, again = asdict(named.results), asdict(opened_again)
    assert [key for key in mine if mine[key] != again[key]] in (["seconds"], [])


def rows_of(file):
    """The same rows, with pictures of Pillow."""
    rows = json.loads(file.read_text())
    for row in rows:
        with Image.open(file.parent / row["image"]) as picture:
            row["image"] = picture.copy()
    return rows


def objects(files):
    processor = AutoProcessor.from_pretrained(files / "student")
    models = [AutoModelForImageTextToText.from_pretrained(files / who) for who in ("student", "teacher")]
    return *models, processor


def test_what_comes_back(files, named):
    assert isinstance(named, Distilled)
    assert named.folder == files / "named" / "student"
    assert named.results.questions == 4
    assert named.results == type(named.results).load(files / "named" / "results.json")
    student, again = named.student.state_dict(), AutoModelForImageTextToText.from_pretrained(named.folder).state_dict()
    assert all(torch.equal(again[name], student[name].cpu()) for name in again)
    assert named.processor.chat_template
    assert evaluate(named.student, files / "test.json", processor=named.processor).right == named.results.right
    recipe = load_recipe(files / "named" / "recipe.yaml")
    assert (recipe.method, recipe.train.learning_rate, recipe.student) == (
        SwitchKD(),
        1e-3,
        Student(str(files / "student")),
    )


@pytest.mark.long
@pytest.mark.parametrize("form", [list, Dataset.from_list], ids=["list", "Dataset"])
def test_objects_in_memory_train_the_same_student_and_stay_as_they_are(files, named, form):
    student, teacher, processor = objects(files)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    output = files / f"in memory, {form.__name__}"
    how = {
        "output": output,
        "method": SwitchKD(),
        "processor": processor,
        "evaluate": rows_of(files / "test.json"),
        **SHORT,
    }
    made = distill(student, teacher, form(rows_of(files / "train.json")), **how)
    first, second = (load_file(one.folder / "model.safetensors") for one in (named, made))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    answers = [[(one.id, one.question, one.got) for one in run.results.predictions] for run in (made, named)]
    assert answers[0] == answers[1]
    # the same call finds the finished run, and its recipe can be run again by itself
    stamp = (output / "1-train" / "checkpoint-2" / "manifest.json").stat().st_mtime_ns
    distill(student, teacher, form(rows_of(files / "train.json")), **how)
    distill(load_recipe(output / "recipe.yaml"))
    assert (output / "1-train" / "checkpoint-2" / "manifest.json").stat().st_mtime_ns == stamp


@pytest.mark.long
def test_sections_say_more(files, tmp_path):
    made = distill(
        Student(str(files / "student"), lora=LoRA(r=2)),
        Teacher(str(files / "teacher"), dtype="bfloat16"),
        Data(str(files / "train.json"), rows=4),
        output=tmp_path / "run",
        method="kd",
        evaluate=Evaluate(str(files / "test.json"), max_new_tokens=2),
        **SHORT,
    )
    recipe = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert (recipe.student.lora, recipe.teacher.dtype, recipe.data.rows, recipe.method.name) == (
        LoRA(r=2),
        "bfloat16",
        4,
        "kd",
    )
    assert made.results.generation["max_new_tokens"] == 2


class Wrapped:
    """A model with adapters, as PEFT wraps it."""

    def merge_and_unload(self):
        return None


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_is_no_model_is_refused(files, tmp_path):
    for model, message in [
        (Wrapped(), "got Wrapped; merge its adapters first: model.merge_and_unload()"),
        (3, "student must be a path, a name on the hub or a model of transformers, got int$"),
    ]:
        with pytest.raises(TypeError, match=message):
            distill(model, files / "teacher", files / "train.json", output=tmp_path / "run")


def test_what_cannot_be_run_is_refused_before_anything_is_written(files, tmp_path):
    student, teacher, processor = objects(files)
    names = files / "student", files / "teacher", files / "train.json"
    output = tmp_path / "run"
    adapted, quantised = objects(files)[:2]
    adapted._hf_peft_config_loaded = True
    quantised.hf_quantizer = object()
    cases = [
        (TypeError, "distill needs data", lambda: distill(*names[:2])),
        (TypeError, "distill needs output, the folder of the run", lambda: distill(*names)),
        (TypeError, "a recipe says all of a run", lambda: distill(load_recipe(recipe), max_steps=1)),
        (TypeError, "a recipe says all of a run", lambda: distill(load_recipe(recipe), output=output)),
        (ValueError, "student is a model in memory: give its processor too", lambda: distill(student, *names[1:], output=output)),
        (ValueError, "teacher is a model in memory: give its processor too", lambda: distill(names[0], teacher, names[2], output=output)),
        (ValueError, "opened with the processor that lies there", lambda: distill(*names, output=output, processor=processor)),
        (ValueError, "adapters or quantised weights", lambda: distill(adapted, *names[1:], output=output, processor=processor)),
        (ValueError, "adapters or quantised weights", lambda: distill(names[0], quantised, names[2], output=output, processor=processor)),
        (ValueError, "distill: train.learning_rate: must be a number, got 'x'", lambda: distill(*names, output=output, learning_rate="x")),
        (ValueError, "distill: train.lr: `train` has no `lr`: here that is", lambda: distill(*names, output=output, lr=1e-4)),
        (ValueError, "method.name: 'switch' is unknown; did you mean", lambda: distill(*names, output=output, method="switch")),
        (ValueError, "needs a teacher", lambda: distill(names[0], None, names[2], output=output)),
        (ValueError, r"absent\.json", lambda: distill(*names, output=output, evaluate=files / "absent.json")),
    ]  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("{student: {path: s}, method: sft, data: {train: d}, train: {output: o}}")
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
        assert not output.exists(), message


def test_bad_rows_in_memory_are_counted(files, tmp_path, caplog):
    rows = rows_of(files / "train.json")
    rows[5]["image"] = "absent.png"
    call = lambda **more: distill(files / "student", None, rows, output=tmp_path / "run", method="sft", **SHORT, **more)  # noqa: E731
    with pytest.raises(ValueError, match=r"1 of 8 rows in memory \(12.5%\) are unusable, more than .*absent.png"):
        call()
    assert not (tmp_path / "run" / "given" / "train").exists()
    rows[5]["image"] = rows[0]["image"]
    call()
    assert json.loads((tmp_path / "run" / "1-train" / "rows.json").read_text())["rows"] == 8
