"""Liger's fused kernels for the norms, SwiGLU and rotary embeddings of a model, and of no other model of the process."""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FunctionType, MethodType
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from switchkd.models.pathway import Pathway

#: auto: Liger's on a CUDA device, where it is installed and knows the language model.
Kernels = Literal["auto", "liger", "none"]
#: What is taken of Liger: layers. Its losses are not, because the head and the loss are this project's own.
LAYERS = {"rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
#: Liger's rotary kernel read beyond its memory on models with tiny heads.
LEAST_HEAD = 64
#: Vision encoders of narrower layers are for tests, and nobody has run Liger's kernels on such.
LEAST_WIDTH = 64
#: Norms of vision encoders without mean and bias that Liger computes as Llama's.
_RMS_NORMS = ("Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "PixtralRMSNorm")

_log = logging.getLogger(__name__)


def use_kernels(pathway: Pathway, kernels: Kernels) -> None:
    """Put the kernels into both parts of `pathway`, in place; with `auto` only what fits, and the log says what and why not.

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
    _patch_vision(pathway)


def has_kernels(model: nn.Module) -> bool:
    """Whether some module of a model computes by Liger's kernels."""
    forwards = (vars(module).get("forward") for module in model.modules())
    return any(getattr(forward, "__module__", "").startswith("liger_kernel") for forward in forwards)


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


def _patch_vision(pathway: Pathway) -> None:
    """The norms of a vision encoder. Liger has no kernel for GELU alone, which is what its layers have between two products."""
    modules = [module for part in pathway.part("vision") for module in part.modules()]
    layers = [module for module in modules if type(module) is nn.LayerNorm and module.bias is not None]
    rms = [module for module in modules if type(module).__name__ in _RMS_NORMS]
    norms: list[Any] = [*layers, *rms]
    widths, kind = [norm.weight.shape[-1] for norm in norms], pathway.model.config.vision_config.model_type
    if not norms or min(widths) < LEAST_WIDTH:
        reason = (
            f"the narrowest is {min(widths)} wide, and {LEAST_WIDTH} is the least"
            if norms
            else "none is of a known kind"
        )
        _log.info("norms of the vision encoder %s are torch's: %s", kind, reason)
        return
    for layer in layers:
        _patches()._patch_layer_norm_module(layer, layer.eps)
    for norm in rms:
        _patches()._patch_rms_norm_module(norm)
    _log.info("norms of the vision encoder %s are Liger's (%d of them), its GELU is torch's", kind, len(norms))


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
