"""One whole Switch-KD step: time by pathway, tokens/s, TFLOP/s, share of the floor, peak memory.

python benchmarks/step.py                                          # tiny, on a CPU
python benchmarks/step.py --device cuda --check                    # the paper's shapes, random weights
python benchmarks/step.py --device cuda --batch 16 --answer 400 --kernels torch
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from common import RESULTS, Demand, batch_of, machine, report, versions
from flops import Sizes, step_flops
from transformers import AutoModelForImageTextToText, LlavaConfig, Qwen2Config, SiglipVisionConfig

from switchkd.batch import Batch
from switchkd.losses import CrossEntropyDBiLD, SummedLoss
from switchkd.methods import Method, SwitchKD
from switchkd.models import Pathway
from switchkd.models.liger import use_kernels
from switchkd.pairing import Pair
from switchkd.signals import Signals
from switchkd.train.stage import GPU_MULTIPLE
from switchkd.train.step import DistillationStep

#: Measured bf16 matrix products of an H200, in TFLOP/s: what the floor is computed with.
PEAK_TFLOPS = 790
PARTS = ("student vision", "student language", "teacher", "switch", "loss", "backward", "optimizer")


def llava(language: dict[str, int], vision: dict[str, int], vocabulary: int) -> LlavaConfig:
    text = Qwen2Config(vocab_size=vocabulary, **language)
    return LlavaConfig(
        vision_config=SiglipVisionConfig(vision_use_head=False, **vision),
        text_config=text,
        image_token_id=vocabulary - 1,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )


def sizes(**values: int) -> dict[str, int]:
    short = {"width": "hidden_size", "inner": "intermediate_size", "layers": "num_hidden_layers",
             "heads": "num_attention_heads", "kv": "num_key_value_heads", "image": "image_size", "patch": "patch_size"}  # fmt: skip
    return {short[name]: value for name, value in values.items()}


def paper() -> tuple[LlavaConfig, LlavaConfig]:
    """Qwen2.5-0.5B and Qwen2.5-3B, each behind SigLIP-so400m-384: 729 visual tokens."""
    siglip = sizes(width=1152, inner=4304, layers=27, heads=16, image=384, patch=14)
    student = sizes(width=896, inner=4864, layers=24, heads=14, kv=2)
    teacher = sizes(width=2048, inner=11008, layers=36, heads=16, kv=2)
    return llava(student, siglip, 151_936), llava(teacher, siglip, 151_936)


def tiny() -> tuple[LlavaConfig, LlavaConfig]:
    """The same in small: 16 visual tokens."""
    vision = sizes(width=32, inner=64, layers=3, heads=2, image=32, patch=8)
    student, teacher = (sizes(width=w, inner=3 * w, layers=2, heads=2, kv=1) for w in (32, 64))
    return llava(student, vision, 1_000), llava(teacher, vision, 1_000)


class Clock:
    """Adds up the time of named spans: CUDA events on a GPU, wall time on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spans: list[tuple[str, object, object]] = []

    def now(self) -> object:
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, name: str):
        start = self.now()
        yield
        self.spans.append((name, start, self.now()))

    def read_ms(self) -> dict[str, float]:
        """Milliseconds by name since the last reading."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for name, start, end in self.spans:
            spent = 1e3 * (end - start) if self.device == "cpu" else start.elapsed_time(end)
            found[name] = found.get(name, 0) + spent
        self.spans.clear()
        return found


def timed(clock: Clock, name: str, function: Callable) -> Callable:
    def call(*arguments):
        with clock.span(name):
            return function(*arguments)

    return call


def batch(config: LlavaConfig, given: argparse.Namespace, sample: Sizes) -> Batch:
    rows, token = given.batch, config.image_token_id
    lengths, width = None, sample.length
    if given.padded:  # evenly spread, the longest of them whole, in rows as wide as the trainer makes them
        lengths = sample.length - torch.linspace(0, given.padded, rows, device=given.device).long()
        width = math.ceil(sample.length / GPU_MULTIPLE) * GPU_MULTIPLE
    ids = torch.randint(token, (rows, width), device=given.device)
    ids[:, 1 : 1 + sample.visual] = token
    side = config.vision_config.image_size
    return batch_of(ids, sample.answer, torch.randn(rows, 3, side, side, device=given.device), lengths)


class TimedStep(DistillationStep):
    """The step with its pathways and its loss timed, and the memory of the loss above its inputs noted."""

    def __init__(self, pair: Pair, method: Method, clock: Clock) -> None:
        super().__init__(pair, method)
        self.clock = clock
        self.loss_gib: list[float] = []
        student, teacher = pair.student, pair.teacher
        assert teacher is not None
        student.see = timed(clock, "student vision", student.see)
        student.say = timed(clock, "student language", student.say)
        teacher.see = timed(clock, "teacher", teacher.see)
        own, switch = (timed(clock, name, teacher.say) for name in ("teacher", "switch"))
        teacher.say = lambda *given: (switch if torch.is_grad_enabled() else own)(*given)

    def _sum(self, pair: Pair, method: Method, signals: Signals) -> SummedLoss:
        on_gpu = self.clock.device == "cuda"
        before = torch.cuda.memory_allocated() if on_gpu else 0
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with self.clock.span("loss"):
            sums = super()._sum(pair, method, signals)
        if on_gpu:
            self.loss_gib.append((torch.cuda.max_memory_allocated() - before) / 2**30)
        return sums


@dataclass(frozen=True)
class WithKernels(SwitchKD):
    """Switch-KD by the kernels of `losses.kernels`, or without them."""

    kernels: Literal["auto", "torch", "triton"] = "auto"

    def chunk_loss(self) -> CrossEntropyDBiLD:
        return replace(super().chunk_loss(), kernels=self.kernels)


def measure(given: argparse.Namespace) -> dict:
    """The row of this step: medians over the repetitions, after three steps to warm up."""
    torch.manual_seed(0)
    on_gpu = given.device == "cuda"
    student_config, teacher_config = paper() if given.shapes == "paper" else tiny()
    side = student_config.vision_config.image_size // student_config.vision_config.patch_size
    sample = Sizes(side**2, given.prompt, given.answer)
    with torch.device(given.device):
        student = Pathway(AutoModelForImageTextToText.from_config(student_config, dtype=torch.float32))
        teacher = Pathway(
            AutoModelForImageTextToText.from_config(teacher_config, dtype=torch.bfloat16 if on_gpu else torch.float32)
        )
    for pathway in (student, teacher):
        use_kernels(pathway, given.layers)
    student.train_only(("vision", "projector", "language"))
    clock = Clock(given.device)
    method = WithKernels(kernels=given.kernels)
    step = TimedStep(Pair(student, teacher, needs=method.needs, vocabulary=student.head.rows), method, clock).train()
    optimizer = torch.optim.AdamW([p for p in step.parameters() if p.requires_grad], lr=1e-6, fused=True)
    inputs = batch(student_config, given, sample)

    def update() -> None:
        with clock.span("step"):
            with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                loss = step(inputs).loss / len(inputs.student.targets)
            with clock.span("backward"):
                loss.backward()
            with clock.span("optimizer"):
                optimizer.step()
                optimizer.zero_grad()

    for _ in range(3):
        update()
    clock.read_ms()
    peak_gib = 0.0
    times = []
    for _ in range(given.repetitions or (20 if on_gpu else 3)):
        update()
        times.append(clock.read_ms())
        if on_gpu:  # the loss resets the counter, and the peak of a step comes after it
            peak_gib = max(peak_gib, torch.cuda.max_memory_allocated() / 2**30)
    by_part = {name: statistics.median(time[name] for time in times) for name in (*PARTS, "step")}
    flops = step_flops(student_config, teacher_config, sample)
    tflop = given.batch * sum(flops.values()) / 1e12
    return {
        "benchmark": "step",
        "sizes": {"batch": given.batch, "prompt": sample.prompt, "answer": sample.answer, "visual": sample.visual,
                  "shapes": given.shapes, "device": given.device, "kernels": given.kernels, "layers": given.layers,
                  "padded": given.padded},
        "step_ms": by_part.pop("step"),
        "parts_ms": by_part,
        "tflop_per_sample": {name: value / 1e12 for name, value in flops.items()},
        "floor_ms": 1e3 * tflop / PEAK_TFLOPS,
        "tflop_per_step": tflop,
        "peak_gib": peak_gib or None,
        "loss_gib_above_inputs": max(step.loss_gib) if step.loss_gib else None,
        "machine": machine(given.device),
        "versions": versions(),
    }  # fmt: skip


def show(row: dict) -> None:
    seconds, size = row["step_ms"] / 1e3, row["sizes"]
    tokens = size["batch"] * (size["visual"] + size["prompt"] + size["answer"])
    print(
        f"{size['shapes']} shapes, batch {size['batch']}, {size['answer']} answer tokens of {tokens // size['batch']}, {size['device']}"
    )
    for name, spent in row["parts_ms"].items():
        print(f"  {name:20} {spent:10.2f} ms  {spent / row['step_ms']:6.1%}")
    reached = row["tflop_per_step"] / seconds
    print(f"  {'step':20} {row['step_ms']:10.2f} ms  {tokens / seconds:,.0f} tokens/s, {reached:.3g} TFLOP/s")
    print(
        f"  floor at {PEAK_TFLOPS} TFLOP/s: {row['floor_ms']:.3g} ms, of which the step reaches {row['floor_ms'] / row['step_ms']:.2%}"
    )
    if row["peak_gib"]:
        print(
            f"  peak {row['peak_gib']:.1f} GiB, of which the loss {row['loss_gib_above_inputs']:.2f} GiB above its inputs"
        )


def demands(row: dict) -> list[Demand]:
    """Those of a GPU; the loss is held to 12.5 ms at 1,920 answer tokens, and to as much per token at another number."""
    answers = row["sizes"]["batch"] * row["sizes"]["answer"]
    return [
        Demand("the step's share of 790 TFLOP/s", row["floor_ms"] / row["step_ms"], 0.5),
        Demand(
            f"loss part in ms at {answers} answer tokens",
            row["parts_ms"]["loss"],
            12.5 * answers / 1920,
            at_least=False,
        ),
        Demand("the loss's memory above its inputs in GiB", row["loss_gib_above_inputs"], 2, at_least=False),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument(
        "--shapes", choices=["tiny", "paper"], help="default: the paper's on a GPU, tiny ones on a CPU"
    )
    options.add_argument("--batch", type=int, help="default 16 on a GPU, 2 on a CPU")
    options.add_argument("--prompt", type=int, default=60, help="tokens of the prompt beside the image")
    options.add_argument("--answer", type=int, default=120, help="answer tokens of each sample")
    options.add_argument("--repetitions", type=int, help="default 20 on a GPU, 3 on a CPU")
    options.add_argument("--kernels", choices=["auto", "torch", "triton"], default="auto", help="triton needs a GPU")
    options.add_argument("--layers", choices=["auto", "liger", "none"], default="auto", help="as train.kernels")
    options.add_argument("--padded", type=int, default=0, help="the shortest row lacks so many tokens of the longest")
    options.add_argument("--check", action="store_true", help="exit 1 naming what falls short; needs a GPU")
    given = options.parse_args()
    if given.check and given.device == "cpu":
        options.error("--check holds a GPU to its demands: add --device cuda")
    given.shapes = given.shapes or ("paper" if given.device == "cuda" else "tiny")
    given.batch = given.batch or (16 if given.device == "cuda" else 2)
    row = measure(given)
    show(row)
    RESULTS.mkdir(exist_ok=True)
    suffix = "" if given.kernels == "auto" else f"-{given.kernels}"
    path = RESULTS / f"step-{given.device}{suffix}.jsonl"
    path.write_text(json.dumps(row) + "\n")
    print(f"  row: {path.relative_to(RESULTS.parent.parent)}")
    if given.device == "cuda":
        report(demands(row), given.check)


if __name__ == "__main__":
    main()
