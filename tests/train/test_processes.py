"""A run on several processes without accelerators is one run."""

import json

import pytest
from ranks import run_on_two_ranks
from run_files import write_run

from switchkd import distill
from switchkd.processes import processes
from switchkd.recipe.schema import load_recipe


@pytest.mark.slow
def test_two_processes_on_cpus_leave_one_student_after_all_epochs(tmp_path):
    """The second of them writes nothing, and both count the steps that are taken: 22 rows in steps of 4 × 2, the last one of 6."""
    recipe = write_run(tmp_path)
    text = recipe.read_text().replace("max_steps: 6", "num_train_epochs: 2, report_to: [], seed: 5")
    text = text[: text.index("evaluate:")].replace("max_length: 256", "max_length: 256, rows: 22")
    recipe.write_text(text.replace("logging_steps: 2", "logging_steps: 1"))
    run_on_two_ranks("distil_on_two_ranks.py", recipe)
    flags = ["--train.output", f"{tmp_path}/alone", "--train.per_device_train_batch_size", "8"]
    distill(load_recipe(recipe, flags))
    both = []
    for run in ("run", "alone"):
        assert (tmp_path / run / "student" / "model.safetensors").is_file()
        lines = [json.loads(line) for line in (tmp_path / run / "1-train" / "metrics.jsonl").read_text().splitlines()]
        both.append([line for line in lines if "loss" in line])
    assert [line["step"] for line in both[0]] == [1, 2, 3, 4, 5, 6]
    for two, one in zip(*both, strict=True):
        assert two["answer_tokens"] == one["answer_tokens"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


def test_processes_that_are_not_joined_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started for this run, and accelerate has joined 1 on cpu"):
        processes()
