"""What `train.arguments` may hand to `transformers.TrainingArguments`: all but what would break what the trainer promises."""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from switchkd.recipe.parsing import suggestion

#: Arguments that are fields of ours under another name.
OURS = {
    "output_dir": "train.output",
    "use_liger_kernel": "train.kernels",
    "train_sampling_strategy": "train.group_by_length",
    "length_column_name": "train.group_by_length",
    "activation_checkpointing": "train.gradient_checkpointing",
    "per_device_eval_batch_size": "evaluate.batch_size",
}
_EVALUATION = "data.validation is looked at after every train.eval_steps, and at the end of a stage"
_BEST = "train.metric_for_best_model says what is best: loss and ce where they are least, exact_match where it is most"
_LAUNCHER = "how a run is spread over devices is said to the launcher (accelerate launch)"
_ROWS = "it would change which rows a step has, and a resumed run would not be the same run"
_LOSS = "the loss is what the method says, divided by the answer tokens of the whole step"
_CHECKPOINT = "a checkpoint holds all that a run needs to go on with the same bits"
_UPLOAD = "the finished student is uploaded, once (push_to_hub, hub_model_id, hub_private_repo, hub_revision)"
#: Arguments that would break a promise of the trainer, and which.
REFUSED = {
    **dict.fromkeys(("do_eval", "do_predict", "eval_strategy", "eval_delay", "eval_on_start"), _EVALUATION),
    **dict.fromkeys(("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps"), _EVALUATION),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval", "batch_eval_metrics", "include_for_metrics"), _EVALUATION),
    "greater_is_better": _BEST,
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "local_rank", "use_cpu"), _LAUNCHER),
    **dict.fromkeys(("accelerator_config", "dataloader_drop_last", "data_seed", "ignore_data_skip"), _ROWS),
    **dict.fromkeys(("auto_find_batch_size", "remove_unused_columns"), _ROWS),
    **dict.fromkeys(("label_smoothing_factor", "average_tokens_across_devices", "label_names"), _LOSS),
    **dict.fromkeys(("prediction_loss_only", "neftune_noise_alpha"), _LOSS),
    **dict.fromkeys(
        ("save_only_model", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"), _CHECKPOINT
    ),
    "ddp_find_unused_parameters": "every rank runs every part, on a blank picture where it has none",
    "ddp_static_graph": "batches without pictures are other graphs",
    "activation_checkpointing_kwargs": "it is set for train.gradient_checkpointing",
    "gradient_checkpointing_kwargs": "it is set for train.gradient_checkpointing",
    "liger_kernel_config": "train.kernels patches norms, SwiGLU and rotary embeddings; the loss is switchkd's own",
    "torch_compile_mode": "train.torch_compile compiles each layer by itself",
    "logging_strategy": "metrics.jsonl has a line for every train.logging_steps",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "include_num_input_tokens_seen": "batches have no `input_ids` to count; metrics.jsonl counts answer tokens",
    **dict.fromkeys(("hub_strategy", "hub_always_push"), _UPLOAD),
    "do_train": "switchkd train trains",
    "use_cache": "a training step has no cache",
    "resume_from_checkpoint": "the same command goes on from the newest sound checkpoint",
    "hub_token": "a recipe is written into checkpoints and cards: put the token into the environment, as HF_TOKEN",
    "optim_target_modules": "the optimizers that need it hook into single layers, which gradients of whole steps do not pass",
}
#: Arguments of the upload, which switchkd makes itself.
UPLOAD = ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_revision")
#: Beginnings of optimizers that change weights before the gradient of the step is known, or hook into single layers.
_HOOKING = ("galore", "apollo", "lomo", "adalomo")


def check_arguments(given: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """The arguments, as the types that they have there.

    Args:
        given: as they were written; from a command line, all are text.
        own: the names of the fields of the section `train`.

    Raises:
        ValueError: an argument that there is not, that is a field of ours, or that would break a promise; a value of another type.
    """
    if not given:
        return {}
    from transformers import TrainingArguments  # takes seconds

    hints = get_type_hints(TrainingArguments)
    names = [field.name for field in fields(TrainingArguments) if field.init]
    checked = {name: _checked(name, value, names, hints, own) for name, value in given.items()}
    if checked.get("push_to_hub") and not checked.get("hub_model_id"):
        raise ValueError("arguments.push_to_hub is true: say where to, with hub_model_id: OWNER/NAME")
    return checked


def _checked(name: str, value: Any, names: list[str], hints: Mapping[str, Any], own: Collection[str]) -> Any:
    if name in OURS or name in own:
        raise ValueError(f"arguments names {name}, which is {OURS.get(name, f'train.{name}')} here: write it there")
    if name in REFUSED:
        raise ValueError(f"arguments names {name}, which is refused: {REFUSED[name]}")
    if name not in names:
        near = suggestion(name, [one for one in names if one not in REFUSED])
        raise ValueError(f"arguments names {name}, which transformers.TrainingArguments does not have{near}")
    value = _typed(name, value, get_args(hints[name]) or (hints[name],))
    if name == "save_strategy" and value not in ("steps", "epoch"):
        raise ValueError(
            f"arguments.save_strategy must be steps or epoch, got {value!r}: {_CHECKPOINT}, and the best one is kept besides"
        )
    if name == "optim" and any(value.startswith(word) or f"_{word}" in value for word in _HOOKING):
        raise ValueError(f"arguments.optim is {value}, which is refused: {REFUSED['optim_target_modules']}")
    return value


def _typed(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    """The value as one of these types; text of a flag is read."""
    for option in options:
        if isinstance(option, type) and issubclass(option, Enum):
            known = [one.value for one in option]
            if value not in known:
                raise ValueError(
                    f"arguments.{name} {value!r} is unknown{suggestion(str(value), known)} (there are: {', '.join(known)})"
                )
            return value
    plain = [get_origin(option) or option for option in options]
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        if NoneType in plain:
            return None
    elif isinstance(value, str) and value.lower() in ("true", "false") and bool in plain:
        return value.lower() == "true"
    for kind in (int, float):
        if kind in plain and not isinstance(value, bool) and (number := _number(kind, value)) is not None:
            return number
    if any(kind in (bool, str, dict, list) and isinstance(value, kind) for kind in plain):
        return value
    if list in plain and isinstance(value, tuple):
        return list(value)
    words = ", ".join(
        "none" if kind is NoneType else getattr(kind, "__name__", str(kind)) for kind in plain if kind is not Literal
    )
    raise ValueError(f"arguments.{name} must be of type {words}, got {value!r}")


def _number(kind: type[int] | type[float], value: Any) -> int | float | None:
    """The value as a finite number of this kind; None where it is none."""
    if not isinstance(value, str | int) and not (kind is float and isinstance(value, float)):
        return None
    try:
        number = kind(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
