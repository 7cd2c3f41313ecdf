"""What really ran, read off the trainer and not off the recipe, for the model card."""

from importlib.metadata import version

import torch
from transformers import SchedulerType, Trainer
from transformers.training_args import OptimizerNames

from switchkd.models import Pathway
from switchkd.train.step import DistillationStep

_PACKAGES = ("torch", "transformers", "accelerate")


def headline(trainer: Trainer) -> str:
    """What really runs, in a few words, as `1 process, bf16 off, device cpu`."""
    args, count = trainer.args, trainer.accelerator.num_processes
    device = f"cuda ({torch.cuda.get_device_name(args.device)})" if args.device.type == "cuda" else args.device.type
    mixed = trainer.accelerator.mixed_precision
    widths = f"bf16 {'on' if mixed == 'bf16' else 'off'}" + (", fp16 on" if mixed == "fp16" else "")
    return f"{_processes(count)}, {widths}, device {device}"


def _processes(count: int) -> str:
    return f"{count} {'process' if count == 1 else 'processes'}"


def what_ran(trainer: Trainer, step: DistillationStep, *, stage: str, steps: int) -> dict[str, str]:
    """Row of a table → what it says about a stage."""
    student, pairs = step.pair.student, step.pairs
    called = {tag: f"teacher {tag}" if step.is_tagged else "teacher" for tag in pairs}
    args, accelerator = trainer.args, trainer.accelerator
    count = accelerator.num_processes
    rows, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    learning = {p.dtype for p in student.parameters() if p.requires_grad}
    computed = {"bf16": "bfloat16 (autocast)", "fp16": "float16 (autocast)"}.get(accelerator.mixed_precision)
    precision = computed or "their own precision"
    if args.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        precision += ", float32 products in TF32"
    warmup = args.get_warmup_steps(steps)
    return {
        "stage": stage,
        "weights that learn": " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in learning)),
        "computed in": precision,
        "processes": f"{count} on {args.device.type}"
        + (f" ({accelerator.distributed_type.value})" if count > 1 else ""),
        **{
            f"{called[tag]}'s device": str(pair.crossing.teacher)
            for tag, pair in pairs.items()
            if pair.crossing.teacher is not None
        },
        "rows of a step": f"{rows * accumulated * count}: {rows} × {accumulated} accumulated × {_processes(count)}",
        "steps": f"{steps}, {warmup} of them warm-up, then {SchedulerType(args.lr_scheduler_type).value} from {args.learning_rate:g}",
        "optimizer": f"{OptimizerNames(args.optim).value}, weight decay {args.weight_decay:g}, gradients clipped at "
        f"{args.max_grad_norm:g}, seed {args.seed}",
        "attention": "; ".join(
            f"{who}: {attention_of(pathway)}"
            for who, pathway in (("student", student), *((called[tag], pair.teacher) for tag, pair in pairs.items()))
            if pathway
        ),
        "software": ", ".join(f"{package} {version(package)}" for package in _PACKAGES),
    }


def attention_of(pathway: Pathway) -> str:
    """How both parts of a model compute attention now, as `vision sdpa, language eager`."""
    config = pathway.model.config
    return (
        f"vision {config.vision_config._attn_implementation}, language {config.get_text_config()._attn_implementation}"
    )
