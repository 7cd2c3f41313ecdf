"""From the last checkpoint to the finished student: what is read, hashed and written."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cases import open_tiny
from run_files import write_model
from safetensors.torch import load_file

from switchkd import manifest
from switchkd.data.processor_files import save_processor
from switchkd.manifest import find_damage, read_manifest
from switchkd.recipe.schema import LoRA
from switchkd.train import checkpoint, run
from switchkd.train.context import StageContext
from switchkd.train.in_memory import why_reloaded
from switchkd.train.run import save_result

#: What serves resuming, of one process, of several, of FSDP and of DeepSpeed.
_STATE = (
    "trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth",
    "log.json", "origin.json", "lora.safetensors", "bridge.safetensors", "learned.safetensors",
    "optimizer.bin", "optimizer_0/__0_0.distcp", "optimizer_0/.metadata", "pytorch_model_fsdp.bin",
    "pytorch_model_fsdp_0/__0_0.distcp", "global_step6/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest", "zero_to_fp32.py",
)  # fmt: skip


@pytest.fixture
def finished(tmp_path):
    """A stage's folder with its last checkpoint: a student in float32."""
    stage = tmp_path / "1-train"
    checkpoint.clear_staging(stage)
    staged = stage / ".saving" / "checkpoint-6"
    write_model(staged, seed=1)
    for name in (*_STATE, "README.md"):
        (staged / name).parent.mkdir(exist_ok=True)
        (staged / name).write_text(name)
    checkpoint.publish(stage, 6)
    return stage


@pytest.fixture
def counted(monkeypatch):
    """Names of the files that are hashed and copied from here on."""
    seen = SimpleNamespace(hashed=[], copied=[])
    checksum, copy = manifest.checksum, run.copy_file
    monkeypatch.setattr(manifest, "checksum", lambda path: seen.hashed.append(path) or checksum(path))
    monkeypatch.setattr(run, "copy_file", lambda old, new: seen.copied.append(old.name) or copy(old, new))
    return seen


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("opened"))


def save(opened: StageContext, stage: Path, dtype: torch.dtype) -> Path:
    context = replace(opened, run=replace(opened.run, student_dtype=dtype), directory=stage)
    return save_result(context, stage.parent)


def test_weights_of_the_finished_student_are_hashed_once_in_the_checkpoint(opened, finished, counted):
    student = save(opened, finished, torch.float32)
    assert find_damage(student, lambda name: name != "README.md") is None
    counted.hashed = [path for path in counted.hashed if path.name == "model.safetensors"]
    names = [path.parent.name for path in counted.hashed]
    assert names == [
        "checkpoint-6",
        "student",
    ]  # whether it is sound, and `find_damage` above: not to write the manifest
    assert (student / "README.md").read_text() == "README.md"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_is_its_model_its_processor_and_its_card(opened, finished, dtype):
    """Whatever else a checkpoint holds, of whatever way to share the work."""
    student = save(opened, finished, dtype)
    opened.run.student.model.save_pretrained(finished / "expected")
    save_processor(opened.run.processor, finished / "expected")
    expected = {path.name for path in (finished / "expected").iterdir()}
    found = {path.relative_to(student).as_posix() for path in student.rglob("*")}
    assert found == {*expected, "README.md", "manifest.json"}


def test_a_student_in_half_precision_is_not_copied_first(opened, finished, counted):
    student = save(opened, finished, torch.bfloat16)
    assert [name for name in counted.copied if "safetensors" in name] == []
    assert find_damage(student, lambda name: name != "README.md") is None
    wide, narrow = (load_file(folder / "model.safetensors") for folder in (finished / "checkpoint-6", student))
    assert wide.keys() == narrow.keys()
    assert all(torch.equal(value.bfloat16(), narrow[name]) for name, value in wide.items())
    assert read_manifest(student).keys() == {path.name for path in student.iterdir()} - {"README.md", "manifest.json"}


def test_what_is_written_into_the_student_does_not_reach_the_checkpoint(opened, finished):
    student = save(opened, finished, torch.float32)
    with (student / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * 64)
    assert checkpoint.damaged(finished / "checkpoint-6") is None
    assert find_damage(student) is not None


WHY = {
    "memory": ({}, {}, None),
    "half": ({"student": {"dtype": "bfloat16"}}, {"student_dtype": torch.bfloat16}, "it is float32 in memory, and bfloat16 on the disk"),
    "lora": ({"student": {"lora": LoRA()}}, {}, "adapters merged"),
    "4 bits": ({"student": {"quantization": "4bit", "lora": LoRA()}}, {}, "adapters merged"),
    "compiled": ({"train": {"torch_compile": True}}, {}, "compiled"),
    "eager": ({"student": {"attn_implementation": "eager"}}, {}, "attention"),
    "asked in half": ({}, {"dtype": "bfloat16"}, "evaluate.dtype is bfloat16"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHY)
def test_the_student_in_memory_is_asked_where_it_answers_as_the_one_on_the_disk(opened, name):
    changed, given, reason = WHY[name]
    recipe = replace(
        opened.run.recipe,
        **{section: replace(getattr(opened.run.recipe, section), **fields) for section, fields in changed.items()},
    )
    run_now = replace(opened.run, recipe=recipe, student_dtype=given.get("student_dtype", torch.float32))
    why = why_reloaded(replace(opened, run=run_now), given.get("dtype", "auto"))
    assert (why is None) if reason is None else reason in why


@pytest.mark.parametrize("name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_student_that_is_spread_over_processes_is_opened(opened, monkeypatch, name):
    monkeypatch.setenv(name, "true")
    assert why_reloaded(opened) == "its weights are spread over the processes"
