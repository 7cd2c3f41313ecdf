"""Rivals of the switch through the real command line: two steps with a pair that may differ in what they compare."""

import json
import subprocess
import sys

import pytest
import torch
from run_files import write_data, write_model
from safetensors.torch import load_file
from tiny import tiny_processor
from transformers import LlavaProcessor, SiglipImageProcessorPil

from switchkd.cli import main
from switchkd.methods import METHODS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A student with 16 visual tokens, a teacher with as many and one with 36."""
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "student", seed=2)
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    small = tiny_processor()
    large = LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 48, "width": 48}),
        tokenizer=small.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=small.chat_template,
    )
    write_model(folder / "more_tokens", seed=1, processor=large, hidden=40, depth=3, image_size=48)
    write_data(folder / "train.json", 8)
    return folder


def write_recipe(files, output, method, teacher):
    recipe = output / "recipe.yaml"
    recipe.write_text(
        f"""
teacher: {{path: {files}/{teacher}}}
student: {{path: {files}/student}}
method: {json.dumps(method)}
data: {{train: {files}/train.json, max_length: 256}}
train: {{output: {output}/run, max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-3, logging_steps: 1, report_to: []}}
"""
    )
    return recipe


def run(files, output, method, teacher):
    """The exit code, and the lines of the log."""
    recipe = write_recipe(files, output, method, teacher)
    code = main(["train", str(recipe)])
    found = [line for file in output.glob("run/*/metrics.jsonl") for line in file.read_text().splitlines()]
    return code, [line for line in map(json.loads, found) if "ce" in line]


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "teacher", "terms"),
    [
        ({"name": "em_kd"}, "more_tokens", {"answers", "matched", "affinity"}),
        (
            {"name": "switch_kd", "window": 32, "switch_layers": 1, "features": 1.0},
            "more_tokens",
            {"switch", "features"},
        ),
        pytest.param(
            {"name": "switch_kd", "window": 32, "switch_layers": 0},
            "teacher",
            {"switch", "align"},
            marks=pytest.mark.slow,
        ),
        ({"name": "feature_kd", "window": 32, "fisher_rows": 8}, "more_tokens", {"features"}),
        pytest.param({"name": "sft", "matched": 0.25}, "more_tokens", {"matched"}, marks=pytest.mark.slow),
        ({"name": "compodistill"}, "teacher", {"answers", "looks"}),
        pytest.param(
            {"name": "compodistill", "reading": "code"}, "teacher", {"answers", "looks"}, marks=pytest.mark.slow
        ),
        ({"name": "align_ti"}, "teacher", {"answers", "instructed"}),
        ({"name": "kd", "weights": "visual"}, "more_tokens", {"kd", "visual_advantage"}),
        pytest.param(
            {"name": "switch_kd", "window": 32, "instructed": 2.0, "weights": {"share": 0.5}},
            "teacher",
            {"switch", "align", "instructed", "visual_advantage"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"name": "switch_kd", "window": 32, "looks": 2.0}, "teacher", {"switch", "looks"}, marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,  # sets have no order that processes share
)
def test_two_steps(files, tmp_path, method, teacher, terms):
    code, lines = run(files, tmp_path, method, teacher)
    assert code == 0
    assert len(lines) == 2
    assert all(terms <= line.keys() for line in lines)
    assert all(line[term] > 0 for line in lines for term in terms)


#: Everything that can be added to a method at once.
ADDED = {"features": 1.0, "matched": 0.25, "looks": 1.0, "instructed": 1.0, "weights": "visual"}


@pytest.mark.long
def test_every_method_trains_where_nothing_checks_its_types(files, tmp_path):
    """In a process of its own: what checks types here imports what modules import for type checkers alone."""
    methods = [{"name": name} for name in METHODS] + [
        {"name": "switch_kd", **ADDED},
        {"name": "switch_kd", "switch_layers": 1},
    ]
    commands = []
    for number, method in enumerate(methods):
        (tmp_path / str(number)).mkdir()
        recipe = write_recipe(files, tmp_path / str(number), method, "teacher")
        commands.append(["train", str(recipe), "--train.max_steps", "1"])
    code = f"from switchkd.cli import main; print([main(command) for command in {commands!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == [str([0] * len(methods))], done.stderr


@pytest.mark.long
def test_every_second_step_has_the_switch(files, tmp_path):
    code, lines = run(files, tmp_path, {"name": "switch_kd", "window": 32, "switch_every": 2}, "more_tokens")
    assert code == 0
    assert ["switch" in line for line in lines] == [True, False]


@pytest.mark.long
def test_a_run_that_goes_on_has_the_weights_of_its_features(files, tmp_path):
    """They are in its checkpoints, and the same wherever they are measured."""
    assert run(files, tmp_path, {"name": "feature_kd", "window": 32, "fisher_rows": 8}, "teacher")[0] == 0
    (file,) = tmp_path.glob("run/*/checkpoint-2/learned.safetensors")
    kept = load_file(file)["weights"]
    assert kept.mean().item() == pytest.approx(1, abs=1e-5)
    assert kept.max() > 1.2 * kept.min()
    recipe = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "more.yaml").write_text(recipe.replace(f"{tmp_path}/run", f"{tmp_path}/again"))
    assert main(["train", str(tmp_path / "more.yaml"), "--train.max_steps", "1"]) == 0
    (again,) = tmp_path.glob("again/*/checkpoint-1/learned.safetensors")
    assert torch.equal(load_file(again)["weights"], kept)


def test_more_layers_than_the_teacher_has_are_refused_before_its_weights_are_read(files, tmp_path, capsys):
    code, lines = run(files, tmp_path, {"name": "switch_kd", "switch_layers": 4}, "teacher")
    assert (code, lines) == (1, [])
    assert "through 4 layers of the teacher's language model, which has 3" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_pairs_that_do_not_fit_are_refused_with_both_numbers(files, tmp_path, capsys, reading):
    code, lines = run(files, tmp_path, {"name": "compodistill", "reading": reading}, "more_tokens")
    assert (code, lines) == (1, [])
    said = " ".join(capsys.readouterr().err.split())
    assert "differ in visual tokens per image: 16 and 36, and the method compares MiddleAttention(" in said
