"""A recipe from start to end on real files, what it leaves behind, and what it refuses."""

import contextlib
import csv
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections import Counter

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from run_files import ANSWER_ALONE, write_data, write_run
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from switchkd import distill
from switchkd.cli import main
from switchkd.data.reader import Reader
from switchkd.doctor import examine
from switchkd.recipe.schema import load_recipe
from switchkd.train.progress import Progress
from switchkd.train.stage import open_run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_run(folder)
    return folder


@pytest.fixture
def fresh(files, tmp_path):
    """A copy to break things in; flags that point a recipe at it."""
    shutil.copytree(files, tmp_path / "files", ignore=shutil.ignore_patterns("run"))
    here = tmp_path / "files"
    flags = [
        "--teacher.path",
        f"{here}/teacher",
        "--student.path",
        f"{here}/student",
        "--data.train",
        f"{here}/data/train.json",
    ]
    return here, [*flags, "--evaluate.data", f"{here}/data/test.json", "--train.output", f"{here}/run"]


@pytest.fixture(scope="module")
def finished(files):
    with (
        (files / "told.txt").open("w") as told,
        (files / "table.txt").open("w") as table,
        contextlib.redirect_stderr(told),
        contextlib.redirect_stdout(table),
    ):
        assert main(["train", str(files / "recipe.yaml")]) == 0
    return files / "run"


@pytest.mark.long
def test_a_run_says_what_runs_what_the_doctor_found_what_came_out_and_what_is_next(files, finished):
    told, table = ((files / name).read_text() for name in ("told.txt", "table.txt"))
    lines = told.splitlines()
    assert lines.count("1 process, bf16 off, device cpu") == 1
    findings = len(re.findall(r" INFO: doctor: \w+: ", (finished / "train.log").read_text()))
    summary = [line for line in lines if line.startswith("doctor: ")]
    assert len(summary) == 2
    assert re.match(rf"doctor: {findings} checks: \d+ fine", summary[0])
    assert "of 1,596 tokens (11.3%) are answers" in summary[1]
    assert "GiB per device" in summary[1]
    assert not re.search(r"^ ok ", told, re.MULTILINE)  # of the findings those that are not well alone
    steps = [line for line in lines if line.startswith("train: step ")]
    assert re.match(
        r"train: step 6 of 6  loss .*  ce .*  align .*  switch .*  lr .* tokens/s .* GiB at most .* left$", steps[-1]
    )
    assert re.search(r"^│ perception +│ +\d", table, re.MULTILINE)
    picture = files / "data" / "images" / "test-0.png"
    assert lines[-4:] == [
        f"the student is in {finished}/student",
        "next:",
        f"  switchkd report {finished} -o {finished}/report.html",
        f"  switchkd chat {finished}/student --image {picture}",
    ]


def test_the_log_of_a_run_has_every_line_that_was_told_and_its_date(files, finished):
    log = (finished / "train.log").read_text()
    told = [
        line
        for line in (files / "told.txt").read_text().splitlines()
        if line.startswith(("doctor:", "1 proc", "train:"))
    ]
    assert len(told) >= 4
    for line in told:
        assert re.search(rf"^\d{{4}}-\d\d-\d\d .*: {re.escape(line)}$", log, re.MULTILINE), line


def test_a_run_leaves_what_it_promises(finished):
    assert {path.name for path in finished.iterdir()} == {
        "1-train", "recipe.yaml", "results.json", "results.predictions.jsonl", "student", "train.log",
    }  # fmt: skip
    assert {path.name for path in (finished / "1-train").iterdir()} == {
        "checkpoint-4", "checkpoint-6", "metrics.jsonl", "rows.json", "tensorboard",
    }  # fmt: skip
    lines = [json.loads(line) for line in (finished / "1-train" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    for line in lines[:3]:
        assert line["loss"] == pytest.approx(line["ce"] + line["align"] + line["switch"], abs=0.2)
        assert 3 <= line["knee_teacher"] <= 32
        assert line["answer_tokens"] > 0
    assert load_recipe(finished / "recipe.yaml").method.window == 32
    results = json.loads((finished / "results.json").read_text())
    assert set(results["kinds"]) == {"perception", "yes_no"}
    card = (finished / "student" / "README.md").read_text()
    assert "switch_kd" in card
    assert "| perception |" in card
    assert "teacher |" in card
    named = json.loads((finished / "student" / "manifest.json").read_text())
    assert named.keys() == {path.name for path in (finished / "student").iterdir()} - {"README.md", "manifest.json"}


def test_no_file_of_the_teacher_is_in_any_checkpoint(files, finished):
    student = {name: tensor.shape for name, tensor in load_file(files / "student" / "model.safetensors").items()}
    for folder in (finished / "student", finished / "1-train" / "checkpoint-6"):
        saved = {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
        assert saved == student
    assert not [path for path in finished.rglob("*") if "teacher" in path.name]


@pytest.mark.long
def test_the_student_answers_where_switchkd_cannot_be_imported(files, finished):
    command = [
        sys.executable,
        "-c",
        ANSWER_ALONE,
        str(finished / "student"),
        str(files / "data" / "images" / "test-0.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("answered")


def test_a_finished_run_can_be_run_again_and_trains_nothing(files, finished):
    before = load_file(finished / "student" / "model.safetensors")
    distill(load_recipe(files / "recipe.yaml"))
    after = load_file(finished / "student" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_output_of_another_recipe_is_refused(files, finished):
    with pytest.raises(ValueError, match=r"recipe.yaml is another recipe than this one"):
        distill(load_recipe(files / "recipe.yaml", ["--train.seed", "3"]))
    with pytest.raises(ValueError, match="already holds a run"):
        distill(load_recipe(files / "recipe.yaml"), resume=False)
    with pytest.raises(ValueError, match="is not empty and not a run of switchkd"):
        distill(load_recipe(files / "recipe.yaml", ["--train.output", str(files / "data")]))


@pytest.mark.long
# every method is compared in test_trainer_loss.py; here one of each kind
@pytest.mark.parametrize(
    "method", ["switch_kd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sft", "kd", "bild", "align_kd"))]
)
def test_fused_and_plain_loss_give_the_same_run(fresh, method):
    here, flags = fresh
    text = (here / "recipe.yaml").read_text().replace("name: switch_kd, window: 32", f"name: {method}")
    (here / "recipe.yaml").write_text(text[: text.index("evaluate:")])
    found = []
    for loss in ("fused", "plain"):
        output = here / loss
        settings = ["--train.loss", loss, "--train.max_steps", "3", "--train.logging_steps", "1"]
        distill(load_recipe(here / "recipe.yaml", [*flags[:6], "--train.output", str(output), *settings]))
        lines = map(json.loads, (output / "1-train" / "metrics.jsonl").read_text().splitlines())
        # the norm is twenty times larger than a loss; in float64 it is compared in test_trainer_loss.py
        left_out = {"grad_norm", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
        found.append([{key: line[key] for key in line.keys() - left_out} for line in lines])
        assert not (output / "student" / "learned.safetensors").exists()
    fused, plain = found
    assert len(fused) == 4  # three steps, and the end
    for one, other in zip(fused, plain, strict=True):
        assert one == pytest.approx(other, rel=0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what torch warns itself of while it traces
def test_options_of_speed_and_memory_change_nothing(fresh, monkeypatch):
    here, flags = fresh
    recipe = here / "recipe.yaml"
    recipe.write_text(recipe.read_text()[: recipe.read_text().index("evaluate:")])
    compiled = []
    genuine = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda layer, **how: compiled.append(how) or genuine(layer, **how))
    options = [
        "--train.switch_checkpointing", "true", "--train.torch_compile", "true", "--train.torch_compile_backend", "eager",
        "--teacher.attn_implementation", "sdpa", "--student.attn_implementation", "sdpa",
    ]  # fmt: skip
    losses = []
    for name, more in (("usual", []), ("options", options)):
        settings = ["--train.output", str(here / name), "--train.max_steps", "3", "--train.logging_steps", "1"]
        distill(load_recipe(recipe, [*flags[:6], *settings, *more]))
        lines = map(json.loads, (here / name / "1-train" / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=0, abs=1e-6)
    assert compiled == [{"backend": "eager"}] * (3 + 2 + 3 + 3)  # layers of vision and language, student and teacher


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        (
            "student.attn_implementation",
            "sdpa",
            "student.attn_implementation is sdpa, which keeps no attention weights",
        ),
        (
            "teacher.attn_implementation",
            "sdpa",
            "teacher.attn_implementation is sdpa, which keeps no attention weights",
        ),
        ("train.torch_compile", "true", "train.torch_compile is true, and compiled layers do not show the attention"),
    ],
)
def test_code_that_keeps_no_attention_weights_is_refused_where_they_are_compared(fresh, flag, value, message):
    here, flags = fresh
    with pytest.raises(ValueError, match=message):
        open_run(load_recipe(here / "recipe.yaml", [*flags[:6], "--method.name", "align_kd", f"--{flag}", value]))


def test_what_is_looked_at_in_the_teacher_alone_leaves_the_student_its_attention(fresh):
    here, flags = fresh
    flags = [*flags[:6], "--method.name", "align_ti"]
    run = open_run(load_recipe(here / "recipe.yaml", [*flags, "--student.attn_implementation", "sdpa"]))
    assert run.student.attention == "sdpa"
    with pytest.raises(ValueError, match=r"teacher\.attn_implementation is sdpa, which keeps no attention weights"):
        open_run(load_recipe(here / "recipe.yaml", [*flags, "--teacher.attn_implementation", "sdpa"]))


def test_kernels_for_a_gpu_are_refused_without_one(fresh):
    here, flags = fresh
    for flag, message in (
        (["--train.kernels", "liger"], "kernels: liger needs a CUDA GPU"),
        (["--teacher.attn_implementation", "flash_attention_2"], "needs a CUDA GPU and the package flash-attn"),
    ):
        with pytest.raises(ValueError, match=message):
            distill(load_recipe(here / "recipe.yaml", [*flags, *flag]))  # which leaves the folder to the next


@pytest.mark.long
def test_stages_hand_the_student_on_and_resume(fresh):
    here, flags = fresh
    recipe_file = here / "stages.yaml"
    recipe_file.write_text(
        (here / "recipe.yaml").read_text()
        + """
stages:
  - {name: connect, train: [projector], method: {switch: 0.0}, max_steps: 2}
  - {name: distil, max_steps: 2}
"""
    )
    recipe = load_recipe(recipe_file, flags)
    distill(recipe)
    start = load_file(here / "student" / "model.safetensors")
    first = load_file(here / "run" / "1-connect" / "checkpoint-2" / "model.safetensors")
    last = load_file(here / "run" / "student" / "model.safetensors")
    moved = {name for name in start if not torch.equal(start[name], first[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)
    assert any("vision_tower" in name for name in start if not torch.equal(first[name], last[name]))
    # the second stage lost: the first is not trained again, and the second ends the same
    shutil.rmtree(here / "run" / "2-distil")
    shutil.rmtree(here / "run" / "student")
    stamp = (here / "run" / "1-connect" / "checkpoint-2" / "manifest.json").stat().st_mtime_ns
    distill(recipe)
    assert (here / "run" / "1-connect" / "checkpoint-2" / "manifest.json").stat().st_mtime_ns == stamp
    again = load_file(here / "run" / "student" / "model.safetensors")
    assert all(torch.equal(last[name], again[name]) for name in last)


@pytest.mark.long
def test_lora_trains_adapters_and_saves_a_plain_student(fresh):
    here, flags = fresh
    lora = ["--student.lora.r", "4", "--student.lora.alpha", "8", "--train.learning_rate", "1e-2"]
    student = distill(load_recipe(here / "recipe.yaml", [*flags, *lora])).folder
    start, saved = (load_file(folder / "model.safetensors") for folder in (here / "student", student))
    assert saved.keys() == start.keys()
    adapted = {name for name in start if ".layers." in name and "language_model" in name and "proj.weight" in name}
    for name in start:
        if "language_model" in name or "lm_head" in name:
            assert torch.equal(start[name], saved[name]) == (name not in adapted), name
    AutoModelForImageTextToText.from_pretrained(student)
    # resuming from the middle ends at the same weights
    shutil.rmtree(here / "run" / "1-train" / "checkpoint-6")
    shutil.rmtree(student)
    distill(load_recipe(here / "recipe.yaml", [*flags, *lora]))
    again = load_file(student / "model.safetensors")
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def levels(findings):
    return {line.check.split(": ")[1]: line.level for line in findings.lines}


def test_the_doctor_finds_nothing_wrong_with_a_sound_recipe(files):
    findings = examine(load_recipe(files / "recipe.yaml"))
    assert findings.ok, findings.lines
    assert {line.check for line in findings.lines} >= {
        "train: student sees images",
        "train: teacher sees images",
        "train: memory",
    }


@pytest.mark.long
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_the_doctor_finds_a_blind_model(fresh, who):
    here, flags = fresh
    weights = load_file(here / who / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("multi_modal_projector.linear_2.weight")]
    weights[name].zero_()  # every image becomes the same constant
    save_file(weights, here / who / "model.safetensors", metadata={"format": "pt"})
    recipe = load_recipe(here / "recipe.yaml", flags)
    assert levels(examine(recipe))[f"{who} sees images"] == "failed"
    with pytest.raises(ValueError, match=rf"the doctor refuses to train: {who} sees images: .*the model is blind"):
        distill(recipe)


def test_the_doctor_finds_a_wrong_image_token(fresh):
    here, flags = fresh
    for who in ("teacher", "student"):
        config = json.loads((here / who / "config.json").read_text())
        config["image_token_id"] = config["image_token_index"] = 1
        (here / who / "config.json").write_text(json.dumps(config))
    assert levels(examine(load_recipe(here / "recipe.yaml", flags)))["student's image token"] == "failed"


def test_data_without_images_is_refused_for_the_switch(fresh):
    here, flags = fresh
    rows = [
        {"id": str(i), "conversations": [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]}
        for i in range(8)
    ]
    (here / "data" / "train.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="the doctor refuses to train: images: none in the first"):
        distill(load_recipe(here / "recipe.yaml", flags))
    assert levels(examine(load_recipe(here / "recipe.yaml", [*flags, "--method.switch", "0"])))["images"] == "warning"


@pytest.mark.long
def test_bad_rows_above_the_limit_stop_the_run(fresh):
    here, flags = fresh
    (here / "data" / "images" / "train-5.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"1 of 24 samples \(4.2%\) are unusable"):
        distill(load_recipe(here / "recipe.yaml", flags))
    report = (here / "run" / "1-train" / "rows.json").read_text()
    assert "train-5" in report
    distill(load_recipe(here / "recipe.yaml", [*flags, "--data.max_bad_fraction", "0.1", "--train.max_steps", "1"]))


@pytest.mark.long
def test_zero_epochs_worth_of_rows_still_make_a_step(fresh):
    here, flags = fresh
    write_data(here / "data" / "train.json", 2)
    accumulate = [
        "--train.max_steps",
        "-1",
        "--train.num_train_epochs",
        "1",
        "--train.gradient_accumulation_steps",
        "64",
    ]
    distill(load_recipe(here / "recipe.yaml", [*flags, *accumulate]))
    state = json.loads((here / "run" / "1-train" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["global_step"] == 1


@pytest.mark.long
def test_a_run_that_was_stopped_is_not_taken_as_finished(fresh, monkeypatch):
    """One and a half epochs of three steps are five steps, not four."""
    here, flags = fresh
    length = ["--train.max_steps", "-1", "--train.num_train_epochs", "1.5", "--train.per_device_train_batch_size", "8"]
    recipe = load_recipe(here / "recipe.yaml", [*flags, *length])

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 4

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "on_step_end", stop)
        with pytest.raises(RuntimeError, match="stage train ended after 4 of 5 steps"):
            distill(recipe)
    assert not (here / "run" / "student").exists()
    distill(recipe)
    state = json.loads((here / "run" / "1-train" / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["global_step"] == 5


def test_what_a_later_stage_lacks_stops_the_run_before_the_first_trains(fresh):
    here, flags = fresh
    stages = f"""
stages:
  - {{name: first, max_steps: 1}}
  - {{name: second, max_steps: 1, data: {here}/data/absent.json}}
"""
    (here / "recipe.yaml").write_text((here / "recipe.yaml").read_text() + stages)
    with pytest.raises((ValueError, OSError), match=r"absent\.json"):
        distill(load_recipe(here / "recipe.yaml", flags))
    assert {file.name for file in (here / "run" / "1-first").iterdir()} == {"rows.json"}


@pytest.mark.parametrize("content", [None, "", "[]", '[{"id": "a"}]', '[{"id": "a", "conversations": []}]'])
def test_questions_that_cannot_be_asked_stop_the_run_before_anything_is_read(fresh, monkeypatch, content):
    here, flags = fresh
    questions = here / "data" / "test.json"
    questions.unlink() if content is None else questions.write_text(content)
    monkeypatch.setattr("switchkd.distillation.open_run", None)
    with pytest.raises(ValueError, match=r"test\.json|cannot be asked"):
        distill(load_recipe(here / "recipe.yaml", flags))
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("metric", "said"),
    [("choice", "needs a letter to compare with"), ("sign=anls", "a metric is given for the kind sign")],
)
def test_metrics_that_cannot_score_stop_the_run_before_anything_is_read(fresh, monkeypatch, metric, said):
    here, flags = fresh
    monkeypatch.setattr("switchkd.distillation.open_run", None)
    with pytest.raises(ValueError, match=said):
        distill(load_recipe(here / "recipe.yaml", [*flags, "--evaluate.metric", metric]))
    assert not (here / "run").exists()


@pytest.fixture
def encoded(tmp_path, monkeypatch):
    """A line for every row that is encoded, from `start` on, also by workers: who asked for it."""
    log = tmp_path / "encoded.txt"
    encode = Reader.encode

    def noted(self, row):
        callers = [frame.name for frame in traceback.extract_stack()]
        who = next((name for name in ("build_index", "examine_stage") if name in callers), "training")
        with log.open("a") as file:
            file.write(f"{who}\n")
        return encode(self, row)

    monkeypatch.setattr(Reader, "encode", noted)

    def count():
        found = Counter(log.read_text().split()) if log.exists() else Counter()
        log.unlink(missing_ok=True)
        return found

    return count


@pytest.mark.long
def test_every_row_is_encoded_once_for_the_index_and_once_when_it_is_trained_on(fresh, encoded, monkeypatch, tmp_path):
    here, flags = fresh
    monkeypatch.setenv("SWITCHKD_CACHE", str(tmp_path / "cache"))
    short = [*flags[:6], "--train.max_steps", "2", "--train.per_device_train_batch_size", "4"]
    recipe = here / "recipe.yaml"
    recipe.write_text(recipe.read_text()[: recipe.read_text().index("evaluate:")])
    distill(load_recipe(recipe, [*short, "--train.output", str(here / "first")]))
    first = encoded()
    assert first["build_index"] == 24
    assert 8 <= first["training"] <= 12  # two steps of four rows, and what the loader holds ready
    assert 8 <= first["examine_stage"] <= 16
    distill(load_recipe(recipe, [*short, "--train.output", str(here / "second")]))
    second = encoded()
    assert second["build_index"] == 0
    assert second["training"] <= 12
    assert second["examine_stage"] <= 16


@pytest.mark.slow
def test_rows_in_columns_of_their_own_train_the_same_student(fresh, finished):
    """A list of a table and packed JSON, with other names of columns, for training and for the questions at the end."""
    folder, flags = fresh
    data = folder / "data"
    for name in ("train", "test"):
        rows = json.loads((data / f"{name}.json").read_text())
        flat = [
            {"nr": row["id"], "talk": row["conversations"], "img": row["image"], "kinds": row["kinds"]} for row in rows
        ]
        with (data / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["nr", "talk", "img", "kinds"])
            writer.writeheader()
            written = flat[:10] if name == "train" else flat
            writer.writerows(row | {key: json.dumps(row[key]) for key in ("talk", "kinds")} for row in written)
        (data / f"{name}.json").unlink()
        if name == "train":
            (data / "rest.json.gz").write_bytes(gzip.compress(json.dumps({"data": flat[10:]}, indent=1).encode()))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    columns = {"id": "nr", "conversations": "talk", "image": "img"}
    recipe["data"]["columns"] = recipe["evaluate"]["columns"] = columns
    recipe["evaluate"]["metric"] = "contains"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    flags[flags.index("--data.train") + 1] = f"{data}/train.csv"
    flags.insert(flags.index("--data.train") + 2, f"{data}/rest.json.gz")
    flags[flags.index("--evaluate.data") + 1] = f"{data}/test.csv"
    recipe = load_recipe(folder / "recipe.yaml", flags)
    assert recipe.data.train == (f"{data}/train.csv", f"{data}/rest.json.gz")
    distill(recipe)
    first, second = (load_file(run / "student" / "model.safetensors") for run in (finished, folder / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = json.loads((folder / "run" / "results.json").read_text())
    assert (results["questions"], results["metrics"]) == (6, {"contains": 6})
    assert "by the metric contains" in (folder / "run" / "student" / "README.md").read_text()
    assert f"`{data}/train.csv`, `{data}/rest.json.gz`" in (folder / "run" / "student" / "README.md").read_text()
    assert load_recipe(folder / "run" / "recipe.yaml") == recipe


@pytest.mark.slow
def test_arguments_a_revision_and_an_upload(fresh, finished, monkeypatch, tmp_path):
    """A student of the hub at a revision, checkpoints by epochs, and the finished student uploaded: the same weights all the same."""
    folder, flags = fresh
    cached = tmp_path / "hub" / "models--owner--start"
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "v1").write_text("c0ffee")
    shutil.move(folder / "student", cached / "snapshots" / "c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    done = []
    for name in ("create_repo", "create_branch", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, *given, name=name, **how: done.append((name, given, how)))
    flags[flags.index("--student.path") + 1] = "owner/start"
    flags += ["--student.revision", "v1", "--train.arguments.save_strategy", "epoch", "--train.arguments.push_to_hub"]
    flags += ["--train.arguments.hub_model_id", "me/mine", "--train.arguments.hub_private_repo", "true"]
    recipe = load_recipe(folder / "recipe.yaml", flags)
    distill(recipe)
    first, second = (load_file(run / "student" / "model.safetensors") for run in (finished, folder / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [path.name for path in (folder / "run").glob("1-train/checkpoint-*")] == ["checkpoint-6"]
    assert [name for name, _, _ in done] == ["create_repo", "upload_folder"]
    assert done[0][1:] == (("me/mine",), {"private": True, "exist_ok": True})
    assert done[1][2]["folder_path"] == folder / "run" / "student"
    card = (folder / "run" / "student" / "README.md").read_text()
    assert "revision: v1" in card
    assert "save_strategy: epoch" in card
    other = load_recipe(folder / "recipe.yaml", [*flags, "--train.arguments.adam_beta1", "0.8"])
    with pytest.raises(ValueError, match="is another recipe than this one"):
        distill(other)
