"""Language models in 8 or 4 bits, through bitsandbytes."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

Quantization = Literal["8bit", "4bit"]


def bits_and_bytes(config: PretrainedConfig, bits: Quantization, compute_dtype: str) -> BitsAndBytesConfig:
    """How to load a model with the linear layers of its language model in 8 bits or in 4 (NF4, its scales quantised too: QLoRA's setting).

    Vision encoder, projector, embeddings and head keep their precision: the first two are small and see what is distilled, and the
    losses rank the head's logits.

    Args:
        config: the model's.
        bits: `8bit` or `4bit`.
        compute_dtype: that 4-bit weights are multiplied in.

    Raises:
        ValueError: if bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantization {bits} needs bitsandbytes, which is not installed: pip install bitsandbytes")
    import torch
    from transformers import BitsAndBytesConfig

    from switchkd.models.families import family_of

    language = family_of(config).parts["language"][0]
    others = [rf"(?!{re.escape(language)}\.).*"]  # a pattern for every name outside the language model
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=others)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        llm_int8_skip_modules=others,
    )


def keep_gradients(model: PreTrainedModel) -> None:
    """Keep 4-bit weights as they were packed, on CPUs too.

    With AVX512 bitsandbytes packs them anew for inference at the first forward without gradients. From then on no gradient passes through
    the layer, and it no longer turns back into the weights that it stands for.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
