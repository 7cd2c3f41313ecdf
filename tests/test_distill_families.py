"""A recipe from start to end – doctor, training, evaluation – with families whose images are not one square each."""

import json

import pytest
from run_files import write_data
from tiny_processors import PROCESSORS, tiny_for
from transformers import AutoModelForImageTextToText

from switchkd import distill
from switchkd.models.families import FAMILIES
from switchkd.recipe.schema import load_recipe

#: Those whose processors can be saved and loaded without torchvision.
LOADABLE = ["llava_next-llama", "idefics3", "paligemma2"]


@pytest.mark.long
@pytest.mark.parametrize("name", LOADABLE)
def test_a_recipe_runs(name, tmp_path):
    for folder, sizes in (("teacher", {"hidden": 32, "depth": 4, "seed": 1}), ("student", {"seed": 2})):
        processor = PROCESSORS[name]()
        tiny_for(name, processor, **sizes).save_pretrained(tmp_path / folder)
        processor.save_pretrained(tmp_path / folder)
    write_data(tmp_path / "train.json", 8)
    write_data(tmp_path / "test.json", 2)
    (tmp_path / "recipe.yaml").write_text(
        f"""
teacher: {{path: {tmp_path}/teacher}}
student: {{path: {tmp_path}/student}}
method: {{name: switch_kd, window: 32}}
data: {{train: {tmp_path}/train.json, max_length: 512}}
train: {{output: {tmp_path}/run, max_steps: 2, per_device_train_batch_size: 4, logging_steps: 1, save_steps: 2}}
evaluate: {{data: {tmp_path}/test.json, max_new_tokens: 4}}
"""
    )
    distill(load_recipe(tmp_path / "recipe.yaml"))
    lines = [json.loads(line) for line in (tmp_path / "run/1-train/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert json.loads((tmp_path / "run/results.json").read_text())["questions"] == 4
    student = AutoModelForImageTextToText.from_pretrained(tmp_path / "run/student")
    assert student.config.model_type in FAMILIES
