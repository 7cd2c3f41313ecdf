"""Settings from outside a recipe: command line, configuration file and variables of accelerate. What runs is what the recipe says."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env

from switchkd.processes import processes, sharded
from switchkd.recipe.schema import Recipe, Train

#: What accelerate's launcher writes from its command line and from its default_config.yaml.
_PRECISION = "ACCELERATE_MIXED_PRECISION"
_ACCUMULATION = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
_CLIPPING = "ACCELERATE_GRADIENT_CLIPPING"
_DEEPSPEED = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_COMPILER = "ACCELERATE_DYNAMO_BACKEND"
_UNSET = ("", "no", "none", "auto")
#: The one way in which FSDP is known to train a pair and to leave plain students.
_FSDP = {
    "FSDP_VERSION": "2",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_OFFLOAD_PARAMS": "false",
}
_MAY_BE_UNSET = ("FSDP_AUTO_WRAP_POLICY", "FSDP_CPU_RAM_EFFICIENT_LOADING", "FSDP_OFFLOAD_PARAMS")


def mixed_precision(train: Train) -> str:
    """What a recipe says, in accelerate's words: `bf16`, `fp16` or `no`."""
    return "bf16" if train.bf16 else "fp16" if train.fp16 else "no"


def check_launch(recipe: Recipe) -> None:
    """Refuse what would run another training than the recipe's.

    Raises:
        ValueError: naming every setting, what it asks for, and what the recipe says; and for ZeRO-3.
    """
    if _zero_stage() == "3":
        raise ValueError(
            "DeepSpeed's ZeRO-3 cannot train a pair: it gathers a weight for its own module alone, and the loss takes the heads of both "
            "models outside of theirs (docs/engines.md). FSDP2 spreads the same over the processes: accelerate launch --config_file "
            "recipes/accelerate/fsdp2.yaml"
        )
    if problems := [*_problems(recipe), *_sharding_problems(recipe), *_deepspeed_problems(recipe)]:
        raise ValueError(
            f"settings outside the recipe ask for another training than the recipe: {'; '.join(problems)}. Write into the recipe what is "
            "meant, and take it out of accelerate's command line, its default_config.yaml (`accelerate config`) and the environment"
        )


def check_accelerator(accelerator: Accelerator, train: Train) -> None:
    """Refuse to train in another precision than the recipe's, wherever it comes from.

    Raises:
        ValueError: with both.
    """
    if accelerator.mixed_precision != mixed_precision(train):
        raise ValueError(
            f"accelerate would train with mixed precision {accelerator.mixed_precision}, and the recipe says {mixed_precision(train)}: "
            "set train.bf16 or train.fp16 to what is meant"
        )


def _problems(recipe: Recipe) -> Iterator[str]:
    train, wanted = recipe.train, mixed_precision(recipe.train)
    if train.fp16 and processes().device.type == "cpu":
        yield "train.fp16 is true, and on a CPU it has no effect: choose train.bf16, or float32 with neither"
    given = _value(_PRECISION)
    if given not in (*_UNSET, wanted):
        yield f"{_PRECISION} is {given}, and train.bf16 is {_yaml(train.bf16)}, train.fp16 {_yaml(train.fp16)}"
    if (given := _value(_COMPILER)) not in _UNSET:
        yield f"{_COMPILER} is {given}, and what a recipe compiles is train.torch_compile with train.torch_compile_backend"
    for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE"):
        if train.torch_compile and _value(name) not in ("", "0"):
            yield f"{name} is {_value(name)}, and train.torch_compile is true"
    for name in ("ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"):
        if parse_flag_from_env(name):
            yield f"{name} is true, which cuts models or batches in ways that no recipe knows"
    steps, given = _accumulation(recipe), _value(_ACCUMULATION)
    ignored = (*_UNSET, "1") if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") else _UNSET
    if given not in ignored and {given} != {str(step) for step in steps}:
        yield f"{_ACCUMULATION} is {given}, and gradient_accumulation_steps is {', '.join(map(str, sorted(steps)))}"
    if (given := _value(_CLIPPING)) not in _UNSET and float(given) != train.max_grad_norm:
        yield f"{_CLIPPING} is {given}, and train.max_grad_norm is {train.max_grad_norm}"


def _sharding_problems(recipe: Recipe) -> Iterator[str]:
    """What cannot be spread over processes, and what accelerate's FSDP would do otherwise than recipes/accelerate/fsdp2.yaml."""
    if not sharded():
        return
    if recipe.train.fp16:
        yield "train.fp16 is true, and where weights are spread over processes only train.bf16 and float32 are known to work"
    for section, teacher in recipe.teacher_sections.items():
        if teacher.mask is not None:
            yield f"{section}.mask is {teacher.mask}, and the smallest weights of a matrix cannot be found where processes have parts of it"
    for who, model in recipe.models.items():
        if model.quantization is not None:
            yield f"{who}.quantization is {model.quantization}, and quantised weights cannot be spread over processes"
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return
    if parse_flag_from_env("FSDP_ACTIVATION_CHECKPOINTING"):
        said = f"train.gradient_checkpointing is {_yaml(recipe.train.gradient_checkpointing)}"
        yield f"FSDP_ACTIVATION_CHECKPOINTING is true, and {said}: that alone says what is recomputed"
    if _value("FSDP_TRANSFORMER_CLS_TO_WRAP") not in _UNSET:
        yield "FSDP_TRANSFORMER_CLS_TO_WRAP names layers, and models name them themselves: leave it out"
    for name, wanted in _FSDP.items():
        given = _value(name)
        if given != wanted.lower() and (given or name not in _MAY_BE_UNSET):
            yield f"{name} is {given or 'not set'}, and a run takes {wanted} only, as recipes/accelerate/fsdp2.yaml says it"


def _deepspeed_problems(recipe: Recipe) -> Iterator[str]:
    """What a configuration file of DeepSpeed says of the same things."""
    path = os.environ.get(_DEEPSPEED, "none")
    if path in _UNSET or not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return
    try:
        config = json.loads(Path(path).read_text())
    except ValueError as error:
        yield f"{path} ({_DEEPSPEED}) is no JSON: {error}"
        return
    train, stages = recipe.train, recipe.resolved_stages()
    expected: dict[str, set[Any]] = {
        "gradient_accumulation_steps": _accumulation(recipe),
        "gradient_clipping": {train.max_grad_norm},
        "train_micro_batch_size_per_gpu": {stage.per_device_train_batch_size for stage in stages},
        "bf16.enabled": {train.bf16},
        "fp16.enabled": {train.fp16},
    }
    for name, wanted in expected.items():
        section, _, key = name.rpartition(".")
        within = config.get(section, {}) if section else config
        given = within.get(key, "auto")
        if given != "auto" and {given} != wanted:
            yield f"{path} says {name} {_yaml(given)}, and the recipe {', '.join(map(_yaml, sorted(wanted)))}"
    for name in ("optimizer", "scheduler"):
        if name in config:
            yield f"{path} has a section {name}, and a recipe has its own: learning_rate, weight_decay, lr_scheduler_type, warmup_ratio"


def _zero_stage() -> str:
    """Of DeepSpeed, in its configuration file or without one; empty where DeepSpeed is not used, or its file cannot be read."""
    if not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return ""
    path = os.environ.get(_DEEPSPEED, "none")
    if path in _UNSET:
        return _value("ACCELERATE_DEEPSPEED_ZERO_STAGE")
    try:
        config = json.loads(Path(path).read_text())
    except ValueError:  # said by `_deepspeed_problems`
        return ""
    return str(config.get("zero_optimization", {}).get("stage", ""))


def _accumulation(recipe: Recipe) -> set[int]:
    return {stage.gradient_accumulation_steps for stage in recipe.resolved_stages()}


def _value(name: str) -> str:
    return os.environ.get(name, "").strip().lower()


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
