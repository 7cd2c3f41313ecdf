"""A Switch-KD step of Qwen2.5-VL 7B → 3B, by the recipe that ships: estimated without weights, and measured on a GPU with random ones.

python benchmarks/qwen_vl.py --estimate                            # any machine: minutes, no weights
python benchmarks/qwen_vl.py                                       # a GPU with 80 GB, which it about fills; less with --lora
python benchmarks/qwen_vl.py --device cpu --repetitions 1          # tiny, that it runs
"""

import argparse
import json
import statistics
from dataclasses import replace

import step
import torch
from common import RESULTS, machine, versions
from transformers import AutoModelForImageTextToText, PretrainedConfig, Qwen2_5_VLConfig

from switchkd.models import Pathway
from switchkd.models.layers import recompute
from switchkd.models.liger import use_kernels
from switchkd.pairing import Pair
from switchkd.recipe.schema import LoRA, Recipe, load_recipe
from switchkd.recipe.shipped_files import shipped
from switchkd.train import lora
from switchkd.train.largest_batch import largest_batch
from switchkd.train.memory import Memory, estimate
from switchkd.train.precision import widen_learning
from switchkd.train.step import DistillationStep

RECIPE = "qwen2.5-vl-3b-from-7b"
#: What a step is expected to reach of `step.PEAK_TFLOPS`, where none has been measured.
EXPECTED_SHARE = 0.55


def config(
    hidden: int, inner: int, layers: int, heads: int, kv: int, rows: int, *, tied: bool, **vision: int
) -> Qwen2_5_VLConfig:
    """As config.json of Qwen/Qwen2.5-VL-*-Instruct has it; what is a class's default is left out."""
    section = hidden // heads // 2
    text = step.sizes(width=hidden, inner=inner, layers=layers, heads=heads, kv=kv) | {
        "vocab_size": rows,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [section // 4, section * 3 // 8, section * 3 // 8],
        },
    }
    encoder = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": hidden}
    special = {"image_token_id": min(151655, rows - 2), "video_token_id": min(151656, rows - 1)}
    return Qwen2_5_VLConfig(text_config=text, vision_config=encoder | vision, tie_word_embeddings=tied, **special)


def full() -> tuple[PretrainedConfig, PretrainedConfig]:
    """Student and teacher as they are published."""
    return config(2048, 11008, 36, 16, 2, 151_936, tied=True), config(3584, 18944, 28, 28, 4, 152_064, tied=False)


def tiny() -> tuple[PretrainedConfig, PretrainedConfig]:
    """The same in small."""
    encoder = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]}
    return config(32, 64, 2, 2, 1, 1_000, tied=True, **encoder), config(64, 96, 2, 2, 1, 1_024, tied=False, **encoder)


def recipe(given: argparse.Namespace) -> Recipe:
    """The recipe that ships, in the sizes and precision that are asked for."""
    shipped_one = load_recipe(shipped()[RECIPE])
    train = replace(
        shipped_one.train,
        per_device_train_batch_size=given.rows,
        gradient_accumulation_steps=1,
        bf16=given.device == "cuda",
    )
    dtype = "bfloat16" if given.shapes == "full" else "float32"
    assert shipped_one.teacher is not None
    return replace(
        shipped_one,
        train=train,
        data=replace(shipped_one.data, max_length=given.length),
        student=replace(shipped_one.student, dtype=dtype, lora=LoRA() if given.lora else None),
        teacher=replace(shipped_one.teacher, dtype=dtype),
    )


def opened(given: argparse.Namespace, chosen: Recipe) -> DistillationStep:
    """The step as `switchkd train` makes it, on models of random weights."""
    (stage,) = chosen.resolved_stages()
    configs, pathways = full() if given.shapes == "full" else tiny(), []
    for one, model in zip(configs, (chosen.student, chosen.teacher), strict=True):
        with torch.device(given.device):
            made = AutoModelForImageTextToText.from_config(one, dtype=getattr(torch, model.dtype))
        pathways.append(Pathway(made))
        use_kernels(pathways[-1], given.layers)
    student, teacher = pathways
    if chosen.student.lora:
        lora.add(student, r=chosen.student.lora.r, alpha=chosen.student.lora.alpha, dropout=chosen.student.lora.dropout)
    student.model.activation_checkpointing_enable({"use_reentrant": False})
    recompute(teacher.part("language"))
    student.train_only(stage.train)
    widen_learning(student)
    rows = min(student.head.rows, teacher.head.rows)
    return DistillationStep(Pair(student, teacher, needs=stage.method.needs, vocabulary=rows), stage.method).train()


def measure(given: argparse.Namespace, chosen: Recipe) -> dict:
    """Median time of a micro-batch and its update, and peak memory, after two to warm up."""
    (stage,) = chosen.resolved_stages()
    made, clock = opened(given, chosen), step.Clock(given.device)
    inputs = largest_batch(chosen, stage, made.pair).to(given.device)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-6, fused=True)
    times = []
    for _ in range(2 + given.repetitions):
        with clock.span("step"):
            with torch.autocast(given.device, torch.bfloat16, enabled=chosen.train.bf16):
                loss = made(inputs).loss / len(inputs.student.targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        times.append(clock.read_ms()["step"])
        if given.device == "cuda" and len(times) == 2:
            torch.cuda.reset_peak_memory_stats()
    return {
        "step_ms": statistics.median(times[2:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if given.device == "cuda" else None,
    }


def show(given: argparse.Namespace, memory: Memory, measured: dict | None) -> None:
    """Estimated and measured, side by side."""
    tokens = given.rows * given.length
    expected_ms = memory.flops / (EXPECTED_SHARE * step.PEAK_TFLOPS * 1e12) * 1e3
    seen = measured or {"step_ms": None, "peak_gib": None}
    ms = seen["step_ms"]
    lines = [
        ("peak GiB of a device, nothing sharded", memory.peak / 2**30, seen["peak_gib"]),
        ("TFLOP of a micro-batch, recomputed layers included", memory.flops / 1e12, None),
        (f"ms of a micro-batch (estimated: at {EXPECTED_SHARE:.0%} of {step.PEAK_TFLOPS} TFLOP/s)", expected_ms, ms),
        ("tokens/s of a device", tokens / expected_ms * 1e3, tokens / ms * 1e3 if ms else None),
        (
            f"share of {step.PEAK_TFLOPS} TFLOP/s",
            EXPECTED_SHARE,
            memory.flops / 1e9 / ms / step.PEAK_TFLOPS if ms else None,
        ),
    ]
    print(
        f"{given.rows} rows of {given.length} tokens, {given.shapes} shapes, {'LoRA' if given.lora else 'all weights'}"
    )
    print(f"{'':66} {'estimated':>12} {'measured':>12}")
    for what, estimated, found in lines:
        print(f"{what:66} {estimated:12,.3g} {'–' if found is None else format(found, ',.3g'):>12}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny shapes, that it runs")
    options.add_argument(
        "--estimate", action="store_true", help="estimate alone: real configs, no weights, any machine"
    )
    options.add_argument("--rows", type=int, default=2)
    options.add_argument("--length", type=int, help="tokens of a row; default 4096, of tiny shapes 512")
    options.add_argument("--lora", action="store_true", help="adapters in the student's language model")
    options.add_argument("--layers", choices=["auto", "liger", "none"], default="auto", help="as train.kernels")
    options.add_argument("--repetitions", type=int, default=10)
    given = options.parse_args()
    if given.device == "cuda" and not given.estimate and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device here: run this on a machine with a GPU, estimate with --estimate, or try it in "
            "small with --device cpu --repetitions 1"
        )
    given.shapes = "full" if given.device == "cuda" or given.estimate else "tiny"
    given.length = given.length or (4096 if given.shapes == "full" else 512)
    torch.manual_seed(0)
    chosen = recipe(given)
    (stage,) = chosen.resolved_stages()
    memory = estimate(chosen, stage, *(full() if given.shapes == "full" else tiny()))
    measured = None if given.estimate else measure(given, chosen)
    show(given, memory, measured)
    row = {"benchmark": "qwen_vl", "sizes": vars(given), "estimated": vars(memory), "measured": measured}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"qwen_vl-{'estimate' if given.estimate else given.device}.jsonl"
    path.write_text(
        json.dumps(row | {"machine": machine("cpu" if given.estimate else given.device), "versions": versions()}) + "\n"
    )
    print(f"row: {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
