"""Recipes that are trained by an engine of `accelerate launch` on two processes, and by one process alone."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from run_files import write_data, write_model
from safetensors.torch import load_file
from tiny_tokenizers import other_processor, sentencepiece_tokenizer

import switchkd
from switchkd import distill
from switchkd.recipe.schema import load_recipe

ENGINES = Path(switchkd.__file__).parent / "recipes" / "accelerate"
#: Name → method, student and settings: what each of them is about stands in `test_engines.py`.
RUNS = {
    "stages": {
        "method": {"name": "switch_kd", "window": 32},
        "stages": [{"name": "language", "train": ["language"], "method": {"name": "sft"}}, {"name": "all"}],
    },
    "maps": {"method": {"name": "align_kd"}, "student": "tied"},
    "bridge": {"method": {"name": "switch_kd", "window": 32}, "student": "narrow", "pair": {"fit_rows": 4}},
    "lora": {
        "method": {"name": "kd"},
        "student": "wide",
        "lora": {"r": 4, "alpha": 8},
        "train": {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "switch_checkpointing": True},
    },
    "bf16": {"method": {"name": "switch_kd", "window": 32}, "train": {"bf16": True}},
    "packed": {"method": {"name": "switch_kd", "window": 32}, "data": {"packing": True, "max_length": 128}},
    "on_policy": {"method": {"name": "switch_kd", "window": 32}, "on_policy": {"share": 0.5, "max_new_tokens": 4}},
    "tags": {
        "method": {"name": "switch_kd", "window": 32},
        "teachers": {"a": "teacher", "b": "foreign"},
        "pair": {"fit_rows": 4, "min_aligned": 0.01},
    },
}
#: The student's answers are refused where its weights are spread.
UNSHARDED = {"on_policy"}
#: What the student of each kind has beside the usual sizes.
_STUDENTS = {"plain": {}, "tied": {"tied": True}, "narrow": {"width": 16}, "wide": {"hidden": 32}}


def write_runs(folder: Path, names: Sequence[str], **train: object) -> list[Path]:
    """A recipe of each of these names, over 11 rows of which three have a picture, in steps of four: the last one of an epoch has three.

    Every third row, and the first with a picture, is taught by the second teacher where there are two.
    """
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
    write_model(folder / "foreign", seed=3, processor=processor, hidden=64, width=48, image_size=48, vocabulary=448)
    for kind, sizes in _STUDENTS.items():
        write_model(folder / kind, seed=2, **sizes)
    write_data(folder / "train.json", 11)
    rows = json.loads((folder / "train.json").read_text())
    for number, row in enumerate(rows):
        row["teacher"] = "a" if number % 3 else "b"
    for row in rows[3:]:
        del row["image"]
        row["conversations"][0]["value"] = "What is in the image?"
    (folder / "train.json").write_text(json.dumps(rows))
    return [_write(folder, name, dict(RUNS[name]), train) for name in names]


def _write(folder: Path, name: str, run: dict, train: dict[str, object]) -> Path:
    settings = {"output": str(folder / name), "num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 0.05,
                "logging_steps": 1, "save_steps": 1, "report_to": [], "arguments": {"optim": "sgd"}}  # fmt: skip
    teachers = {tag: {"path": str(folder / name)} for tag, name in run.pop("teachers", {}).items()}
    recipe = {
        **({"teachers": teachers} if teachers else {"teacher": {"path": str(folder / "teacher")}}),
        "student": {"path": str(folder / run.pop("student", "plain")), "lora": run.pop("lora", None)},
        **run,
        "data": {"train": str(folder / "train.json"), "max_length": 256, "max_bad_fraction": 0} | run.get("data", {}),
        "train": settings | run.get("train", {}) | train,
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe))
    return file


def launch(engine: str, *arguments: object, python: str = sys.executable) -> subprocess.Popen[str]:
    """`accelerate launch` with the shipped configuration of an engine, on two processes."""
    command = [python, "-m", "accelerate.commands.launch", "--config_file", str(ENGINES / f"{engine}.yaml")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--num_processes", "2", "--main_process_port", "0", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def trained_alone(recipe: Path) -> Path:
    """The run of one process with batches as large as both have together; its folder."""
    given = load_recipe(recipe)
    alone = replace(
        given.train,
        output=f"{given.train.output}-alone",
        per_device_train_batch_size=2 * given.train.per_device_train_batch_size,
    )
    distill(replace(given, train=alone))
    return Path(alone.output)


def steps(run: Path) -> list[dict[str, float]]:
    """The logged lines of all steps of all stages."""
    lines = [json.loads(line) for file in sorted(run.glob("*/metrics.jsonl")) for line in file.read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the student, and of what learned with it, in the last checkpoint of the last stage."""
    stage = sorted(run.glob("[0-9]-*"))[-1]
    last = max(stage.glob("checkpoint-*"), key=lambda path: int(path.name.removeprefix("checkpoint-")))
    files = sorted(last.glob("*.safetensors"))
    return {f"{file.name}:{name}": tensor for file in files for name, tensor in load_file(file).items()}
