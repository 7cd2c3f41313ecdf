"""The memory estimate beside what a training step really takes, on models small enough for a CPU.

python benchmarks/memory.py --check
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import RESULTS, Demand, batch_of, kib, machine, report, versions
from transformers import AutoModelForImageTextToText, LlavaConfig, Qwen2Config, SiglipVisionConfig

from switchkd.batch import Batch
from switchkd.methods import SFT, SwitchKD
from switchkd.models import Pathway
from switchkd.models.layers import recompute
from switchkd.pairing import Pair
from switchkd.recipe.schema import Data, LoRA, Recipe, Stage, Student, Teacher, Train
from switchkd.train import lora
from switchkd.train.memory import estimate
from switchkd.train.step import DistillationStep

ROWS, WORDS, ANSWERS, IMAGE_TOKEN, VOCABULARY = 8, 192, 64, 5, 8000


def config(hidden: int, layers: int, vision_layers: int) -> LlavaConfig:
    vision = SiglipVisionConfig(
        hidden_size=128, intermediate_size=512, num_hidden_layers=vision_layers, num_attention_heads=4, image_size=112, patch_size=14
    )  # fmt: skip
    language = Qwen2Config(
        hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )  # fmt: skip
    return LlavaConfig(vision_config=vision, text_config=language, image_token_id=IMAGE_TOKEN, vision_feature_layer=-2,
                       vision_feature_select_strategy="full")  # fmt: skip


def recipe(**train: object) -> Recipe:
    defaults = {"output": "unused", "per_device_train_batch_size": ROWS}
    return Recipe(
        student=Student("student"), teacher=Teacher("teacher"), method=SwitchKD(), data=Data("data"), train=Train(**defaults | train)
    )  # fmt: skip


def with_stage(parts: tuple[str, ...], method: object) -> Recipe:
    return replace(recipe(), stages=(Stage("train", train=parts, method=method),))


CASES = {
    "switch-kd": recipe(),
    "switch-kd, gradient checkpointing": recipe(gradient_checkpointing=True),
    "switch-kd, both checkpointings": recipe(gradient_checkpointing=True, switch_checkpointing=True),
    "switch-kd, bf16 autocast": recipe(bf16=True),
    "switch-kd, accumulation": recipe(gradient_accumulation_steps=2),
    "switch-kd, bf16 teacher": replace(recipe(), teacher=Teacher("teacher", dtype="bfloat16")),
    "align, vision frozen": with_stage(("projector", "language"), SwitchKD(switch=0)),
    "sft": with_stage(("vision", "projector", "language"), SFT()),
    "sft, LoRA": replace(with_stage(("projector", "language"), SFT()), student=Student("student", lora=LoRA())),
}  # fmt: skip
STUDENT, TEACHER = config(256, 4, 5), config(320, 5, 6)


def measure(given: Recipe) -> int:
    """Peak resident memory of the second step of two, above what the process holds before there are models; in bytes."""
    batch = make_batch()
    _step_of(
        given, config(32, 1, 2), config(32, 1, 2), batch
    )()  # what libraries load and keep is not memory of the step
    settle()
    before = kib("VmRSS")
    step = _step_of(given, STUDENT, TEACHER, batch)
    step()
    settle()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the memory held now
    step()
    return (kib("VmHWM") - before) * 1024


def settle() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def make_batch() -> Batch:
    pictures = (112 // 14) ** 2
    ids = torch.randint(6, VOCABULARY, (ROWS, pictures + WORDS))
    ids[:, :pictures] = IMAGE_TOKEN
    return batch_of(ids, ANSWERS, torch.randn(ROWS, 3, 112, 112))


def _step_of(
    given: Recipe, student_config: LlavaConfig, teacher_config: LlavaConfig, batch: Batch
) -> Callable[[], None]:
    (stage,) = given.resolved_stages()
    method, needs = stage.method, stage.method.needs
    student = Pathway(AutoModelForImageTextToText.from_config(student_config, dtype=torch.float32))
    if given.student.lora:
        lora.add(student, r=given.student.lora.r, alpha=given.student.lora.alpha, dropout=0.0)
    if given.train.gradient_checkpointing:
        student.model.activation_checkpointing_enable({"use_reentrant": False})
    student.train_only(stage.train)
    teacher = None
    if "teacher" in needs:
        dtype = torch.float32 if given.teacher.dtype == "auto" else getattr(torch, given.teacher.dtype)
        teacher = Pathway(AutoModelForImageTextToText.from_config(teacher_config, dtype=dtype))
        if given.train.switch_checkpointing:
            recompute(teacher.part("language"))
    pair = Pair(student, teacher, needs=needs, vocabulary=student.head.rows)
    step = DistillationStep(pair, method, loss=given.train.loss).train()
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], fused=True)

    def update() -> None:
        for _ in range(stage.gradient_accumulation_steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=given.train.bf16):
                loss = step(batch).loss
            (loss / len(batch.student.targets)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--check", action="store_true", help="exit 1 naming the cases whose estimate is off by more than 10 %%"
    )
    options.add_argument(
        "--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="some of the cases"
    )
    options.add_argument(
        "--measure", choices=CASES, help=argparse.SUPPRESS
    )  # how a process learns which case is its own
    given = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.measure:
        print(json.dumps(measure(CASES[given.measure])))
        return
    rows, demands = [], []
    print(f"{'case':36} {'measured':>12} {'estimate':>12}   of which activations, loss")
    for name in given.only:
        (stage,) = CASES[name].resolved_stages()
        memory = estimate(CASES[name], stage, STUDENT, TEACHER, make_batch())
        # Every allocation of 64 KiB or more goes back to the system when it is freed, so that resident memory is memory in use
        allocator = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            [sys.executable, __file__, "--measure", name], env=os.environ | allocator, capture_output=True, text=True, check=False
        )  # fmt: skip
        if process.returncode:
            raise SystemExit(f"{name} failed:\n{process.stderr}")
        measured = int(process.stdout.splitlines()[-1])
        activations = memory.student_vision + memory.student_language + memory.switch
        mib = [x / 2**20 for x in (measured, memory.peak, activations, memory.loss)]
        print("{:36} {:8.0f} MiB {:8.0f} MiB   {:.0f}, {:.0f} MiB".format(name, *mib), flush=True)
        rows.append({"benchmark": "memory", "case": name, "measured_bytes": measured, "estimate": vars(memory),
                     "machine": machine("cpu"), "versions": versions()})  # fmt: skip
        demands.append(
            Demand(f"{name}: |estimate / measured − 1|", abs(memory.peak / measured - 1), 0.1, at_least=False)
        )
    if given.only == list(CASES):
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "memory-cpu.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(demands, given.check)


if __name__ == "__main__":
    main()
