"""Liger's fused kernels for norms, SwiGLU and rotary embeddings in a model's language model, and in no other model of the process."""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedModel

from switchkd.models.pathway import Pathway

#: auto: Liger's on a CUDA device, where it is installed and knows the language model.
Kernels = Literal["auto", "liger", "none"]
#: What is taken of Liger: layers. Its losses are not, because the head and the loss are this project's own.
LAYERS = {"rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
#: Liger's rotary kernel read beyond its memory on models with tiny heads.
LEAST_HEAD = 64

_log = logging.getLogger(__name__)


def use_kernels(pathway: Pathway, kernels: Kernels) -> None:
    """Put the kernels into the language model of `pathway`, in place; with `auto` only what fits, and the log says what and why not.

    Raises:
        ValueError: with `liger`, without a GPU or without the packages, or if Liger has no kernels for this language model.
    """
    if kernels == "none" or (kernels == "auto" and device_of(pathway) != "cuda"):
        return
    models = [module for module in pathway.part("language") if isinstance(module, PreTrainedModel)]  # without the head
    if reason := _why_not(device_of(pathway), models):
        if kernels == "liger":
            raise ValueError(f"train.kernels: liger {reason}, or leave train.kernels at auto")
        _log.info("norms, SwiGLU and rotary embeddings of %s are torch's: Liger %s", _kinds(models), reason)
        return
    for model in models:
        rotary = _head_width(model.config.get_text_config()) >= LEAST_HEAD
        _patch(model, rotary=rotary)
        what = (
            "norms, SwiGLU and rotary embeddings"
            if rotary
            else "norms and SwiGLU (its heads are too narrow for rotary)"
        )
        _log.info("%s of %s are Liger's", what, _kinds([model]))


def device_of(pathway: Pathway) -> str:
    """The kind of device that the model is on."""
    return pathway.head.weight.device.type


def _why_not(device: str, models: list[PreTrainedModel]) -> str | None:
    if device != "cuda":
        return f"needs a CUDA GPU, and this model is on {device}"
    for package in ("triton", "liger_kernel"):
        if importlib.util.find_spec(package) is None:
            return f"needs the package {package}, which is not installed: pip install liger-kernel"
    known = _patches().MODEL_TYPE_TO_APPLY_LIGER_FN
    unknown = [model.config.model_type for model in models if model.config.model_type not in known]
    return f"has no kernels for the language model {', '.join(unknown)!r}" if unknown else None


def _patches() -> Any:
    return import_module("liger_kernel.transformers.monkey_patch")


def _kinds(models: list[PreTrainedModel]) -> str:
    return ", ".join(model.config.model_type for model in models)


def _head_width(config: PretrainedConfig) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def _patch(model: PreTrainedModel, *, rotary: bool) -> None:
    """Liger changes the modules of one model, and names in the files of transformers, which would change every other one."""
    with _names_put_back() as changed:
        _patches()._apply_liger_kernel_to_instance(model=model, rope=rotary, **LAYERS)
    functions = {name: value for name, value in changed().items() if inspect.isfunction(value)}
    for module in model.modules():
        forward = type(module).forward
        if isinstance(forward, FunctionType) and (own := functions.keys() & set(forward.__code__.co_names)):
            module.forward = MethodType(_with_names(forward, {name: functions[name] for name in own}), module)


def _with_names(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    """The same function, for which some global names mean something else."""
    other = FunctionType(
        function.__code__, function.__globals__ | names, function.__name__, function.__defaults__, function.__closure__
    )
    other.__kwdefaults__ = function.__kwdefaults__
    return other


@contextmanager
def _names_put_back() -> Iterator[Callable[[], dict[str, Any]]]:
    """Give every file of models of transformers its names back; the result has what they had become."""
    files = [
        file for name, file in sys.modules.items() if name.startswith("transformers.models.") and ".modeling_" in name
    ]
    before = [(file, dict(vars(file))) for file in files]
    changed: dict[str, Any] = {}
    yield lambda: changed
    for file, names in before:
        for name in [name for name, value in vars(file).items() if names.get(name) is not value]:
            changed[name] = vars(file)[name]
            if name in names:
                setattr(file, name, names[name])
            else:
                delattr(file, name)
