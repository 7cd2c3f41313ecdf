"""The TinyLLaVA recipe as it is shipped, on tiny models of the same structure: teacher converted, student made by
`switchkd init`, every stage takes a step."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from capabilities import BF16_ATTENTION
from run_files import write_data
from safetensors.torch import load_file
from student_files import write_language, write_vision
from tinyllava_files import Reference

from switchkd import cli

RECIPE = Path(__file__).parents[2] / "recipes" / "tinyllava-0.5b-from-3b.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tinyllava")
    Reference(hidden=48, seed=1, dtype=torch.bfloat16).write(folder / "teacher-tinyllava")
    assert cli.main(["convert", str(folder / "teacher-tinyllava"), str(folder / "teacher")]) == 0
    write_vision(folder / "vision")
    write_language(folder / "language")
    parts = ["--from-teacher", folder / "teacher", "--vision", folder / "vision", "--language", folder / "language"]
    assert cli.main(["init", str(folder / "student"), *map(str, parts)]) == 0
    write_data(folder / "data.json", 8)
    changes = {
        "teacher.path": folder / "teacher", "student.path": folder / "student", "train.output": folder / "run",
        "data.train": folder / "data.json", "stages.0.data": folder / "data.json", "train.max_steps": 1,
        "train.per_device_train_batch_size": 2, "stages.0.per_device_train_batch_size": 2, "train.dataloader_num_workers": 0,
        "train.logging_steps": 1, "train.warmup_ratio": 0,  # whose first step has a rate of zero
    }  # fmt: skip
    if not BF16_ATTENTION:
        changes |= {"train.bf16": "false", "teacher.dtype": "float32"}
    flags = [str(word) for name, value in changes.items() for word in (f"--{name}", value)]
    assert cli.main(["train", str(RECIPE), *flags]) == 0
    return folder


@pytest.mark.slow
def test_every_stage_trains_its_parts_with_its_method(trained):
    weights = [load_file(trained / "student" / "model.safetensors")]
    lines = []
    for stage in ("1-dpt", "2-sft", "3-dft"):
        weights.append(load_file(trained / "run" / stage / "checkpoint-1" / "model.safetensors"))
        lines.append(json.loads((trained / "run" / stage / "metrics.jsonl").read_text().splitlines()[0]))
    moved = [
        {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
        for before, after in pairwise(weights)
    ]
    assert moved == [
        {"multi_modal_projector"},
        {"multi_modal_projector", "language_model"},
        {"multi_modal_projector", "language_model", "vision_tower"},
    ]
    assert [{"ce", "align", "switch"} & line.keys() for line in lines] == [
        {"ce", "align"},
        {"ce"},
        {"ce", "align", "switch"},
    ]
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in lines)


@pytest.mark.slow
def test_the_trained_student_goes_to_tinyllava(trained, tmp_path):
    names = ["--language", "Qwen/Qwen2.5-0.5B", "--vision", "google/siglip-so400m-patch14-384"]
    assert cli.main(["convert", str(trained / "run" / "student"), str(tmp_path / "tinyllava"), *names]) == 0
    expected = load_file(Reference().write(tmp_path / "reference") / "model.safetensors")
    assert load_file(tmp_path / "tinyllava" / "model.safetensors").keys() == expected.keys()
    assert json.loads((tmp_path / "tinyllava" / "config.json").read_text())["vision_feature_select_strategy"] == "patch"
