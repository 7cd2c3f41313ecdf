"""Several samples in one row: how a language model is told where each begins, and keeps its attention to it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.import_utils import is_flash_attn_2_available

from switchkd.batch import Inputs
from switchkd.models.families import family_of

if TYPE_CHECKING:
    from switchkd.models.pathway import Pathway


def check_packable(*configs: PretrainedConfig) -> None:
    """Raise ValueError for a model whose samples cannot share a row."""
    for config in configs:
        family = family_of(config)
        if family.unpackable is not None:
            raise ValueError(
                f"data.packing is true, and samples of {family.model_type} cannot share a row, because {family.unpackable}: set "
                "data.packing to false (train.group_by_length keeps padding low too)"
            )


def packed_arguments(pathway: "Pathway", inputs: Inputs) -> dict[str, Any]:
    """What the language model takes of packed rows, besides what it sees.

    Positions begin again with each sample. transformers finds samples by that, and masks all others; flash attention, which reads no masks
    but where samples begin, takes all rows as one.
    """
    assert inputs.offsets is not None
    given = {
        "input_ids": inputs.tokens,
        "position_ids": pathway.family.packed_positions(pathway.model, inputs),
        **pathway.family.language_inputs(inputs.shown, inputs.types),
    }
    if not pathway.attention.startswith("flash_attention"):
        return given
    width = inputs.tokens.shape[1]
    # one behind the other: a sample, and the padding or nothing behind it
    ends = torch.stack([inputs.offsets, inputs.offsets + inputs.lengths], dim=1).flatten()
    borders = torch.cat([ends, ends.new_full((1,), inputs.tokens.numel())]).int()
    lengths = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": width, "max_length_k": width}
    of_tokens = ("input_ids", "position_ids", *inputs.types)
    return {name: _one_row(one) if name in of_tokens else one for name, one in given.items()} | lengths


def _one_row(tensor: Tensor) -> Tensor:
    return tensor.flatten(-2).unsqueeze(-2)


def use_flash_attention(pathway: "Pathway", *, half: bool) -> None:
    """Let the language model run flash attention of variable lengths where it can: it makes no masks, and computes nothing that they hide.

    Args:
        pathway: on its device, with the attention that transformers chose.
        half: whether it computes in half precision, which flash attention needs.
    """
    if half and pathway.attention == "sdpa" and pathway.head.weight.is_cuda and is_flash_attn_2_available():
        pathway.use_attention("flash_attention_2")
