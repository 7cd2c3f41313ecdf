"""What accelerate's command line, file and variables ask for beside the recipe: refused where it would be another training."""

import json
import re

import pytest
from run_files import write_run

from switchkd import distill
from switchkd.doctor import examine
from switchkd.recipe.schema import load_recipe
from switchkd.train.launch import check_launch


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("launch"))


REFUSED = {
    "mixed precision": ({"ACCELERATE_MIXED_PRECISION": "bf16"}, [], "ACCELERATE_MIXED_PRECISION is bf16, and train.bf16 is false"),
    "another one": ({"ACCELERATE_MIXED_PRECISION": "fp16"}, ["--train.bf16", "true"], "is fp16, and train.bf16 is true"),
    "fp8": ({"ACCELERATE_MIXED_PRECISION": "fp8"}, [], "ACCELERATE_MIXED_PRECISION is fp8"),
    "compiler": ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, [], "ACCELERATE_DYNAMO_BACKEND is inductor"),
    "no compiler": ({"TORCHDYNAMO_DISABLE": "1"}, ["--train.torch_compile", "true"], "TORCHDYNAMO_DISABLE is 1, and train.torch_compile"),
    "megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, [], "ACCELERATE_USE_MEGATRON_LM is true"),
    "parallelism": ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, [], "ACCELERATE_USE_PARALLELISM_CONFIG is true"),
    "accumulation": ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, [], "STEPS is 4, and gradient_accumulation_steps is 1"),
    "clipping": ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, [], "ACCELERATE_GRADIENT_CLIPPING is 0.5, and train.max_grad_norm is 1.0"),
    "checkpointing": (
        {"ACCELERATE_USE_FSDP": "true", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, [], "and train.gradient_checkpointing is false",
    ),
    "fp16 on a CPU": ({}, ["--train.fp16", "true"], "train.fp16 is true, and on a CPU it has no effect"),
}  # fmt: skip
TAKEN = {
    "nothing": ({}, []),
    "what the launcher always writes": (
        {
            "ACCELERATE_MIXED_PRECISION": "no",
            "ACCELERATE_DYNAMO_BACKEND": "NO",
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        },
        ["--train.gradient_accumulation_steps", "2"],
    ),
    "bf16 in a recipe alone": ({"ACCELERATE_MIXED_PRECISION": "no"}, ["--train.bf16", "true"]),
    "the same": (
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
        ["--train.bf16", "true", "--train.gradient_accumulation_steps", "4"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_training_than_the_recipes_is_refused(file, monkeypatch, name):
    variables, flags, message = REFUSED[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        check_launch(load_recipe(file, flags))
    assert str(caught.value).count(message) == 1


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_the_recipes_own_training_is_taken(file, monkeypatch, name):
    variables, flags = TAKEN[name]
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    check_launch(load_recipe(file, flags))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bf16": {"enabled": True}}, "says bf16.enabled true, and the recipe false"),
        ({"gradient_clipping": 0.3}, "says gradient_clipping 0.3, and the recipe 1.0"),
        ({"train_micro_batch_size_per_gpu": 2}, "says train_micro_batch_size_per_gpu 2, and the recipe 4"),
        ({"optimizer": {"type": "Adam"}}, "has a section optimizer"),
        ({"zero_optimization": {"stage": 3}}, "ZeRO-3 cannot train a pair"),
        ({"gradient_clipping": "auto", "zero_optimization": {"stage": 2}}, None),
    ],
)
def test_a_file_of_deepspeed_must_say_the_same(file, monkeypatch, tmp_path, config, message):
    (tmp_path / "ds.json").write_text(json.dumps(config))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "ds.json"))
    if message is None:
        check_launch(load_recipe(file))
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        check_launch(load_recipe(file))


def test_doctor_and_training_refuse_before_anything_is_loaded(file, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    recipe = load_recipe(file, ["--student.path", "./nothing"])
    (finding,) = examine(recipe).lines
    assert (finding.level, finding.check) == ("failed", "can be opened")
    assert "ACCELERATE_MIXED_PRECISION is bf16" in finding.detail
    with pytest.raises(ValueError, match="ACCELERATE_MIXED_PRECISION is bf16"):
        distill(recipe)


@pytest.mark.long
def test_a_single_step_learns_at_the_full_rate_and_the_card_says_what_ran(tmp_path):
    file = write_run(tmp_path)
    text = file.read_text()
    file.write_text(text[: text.index("evaluate:")])
    flags = ["--train.max_steps", "1", "--train.logging_steps", "1", "--train.bf16", "true"]
    student = distill(load_recipe(file, flags)).folder
    lines = [json.loads(line) for line in (tmp_path / "run" / "1-train" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["learning_rate"] == 1e-3
    card = (student / "README.md").read_text()
    for row in (
        "| weights that learn | float32 |",
        "| computed in | bfloat16 (autocast) |",
        "| processes | 1 on cpu |",
        "| rows of a step | 4: 4 × 1 accumulated × 1 process |",
        "| steps | 1, 0 of them warm-up,",
    ):
        assert row in card
