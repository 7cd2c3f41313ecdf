"""Liger's fused kernels for norms, SwiGLU and rotary embeddings in a model's language model."""

import importlib.util
from importlib import import_module

from transformers import PreTrainedModel

from switchkd.models.pathway import Pathway

#: What is taken of Liger: layers. Its losses are not, because the head and the loss are this project's own.
KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(pathway: Pathway) -> None:
    """Put the kernels into the language model of `pathway`, in place.

    Raises:
        ValueError: without a GPU or without the packages, or if Liger has no kernels for this language model.
    """
    device = device_of(pathway)
    if device != "cuda":
        raise ValueError(f"liger_kernel needs a CUDA GPU, and this model is on {device}: leave train.liger_kernel off")
    for package in ("triton", "liger_kernel"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"liger_kernel needs the package {package}, which is not installed: pip install liger-kernel, or leave "
                "train.liger_kernel off"
            )
    patches = import_module("liger_kernel.transformers.monkey_patch")
    for module in pathway.part("language"):
        if not isinstance(module, PreTrainedModel):
            continue  # the head
        kind = module.config.model_type
        if kind not in patches.MODEL_TYPE_TO_APPLY_LIGER_FN:
            raise ValueError(f"Liger has no kernels for the language model {kind!r}: leave train.liger_kernel off")
        patches._apply_liger_kernel_to_instance(model=module, **KERNELS)


def device_of(pathway: Pathway) -> str:
    """The kind of device that the model is on."""
    return pathway.head.weight.device.type
