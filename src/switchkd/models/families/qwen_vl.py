"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, one long sequence of patches in which the merger's blocks of 2 × 2 stay together."""

from typing import Any, ClassVar, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_window_index

from switchkd.batch import Inputs, Media
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.family import PHOTOGRAPH, Family, Names, Projected, one

#: ChatML with marks around an image.
QWEN3_VL = CHATML.replace("'<image>\\n'", "'<|vision_start|><image><|vision_end|>'")
#: The same, with the system turn that Qwen2-VL and Qwen2.5-VL begin with where the conversation has none.
QWEN2_VL = (
    """{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
    + QWEN3_VL
)


class Qwen2VL(Family):
    """`image_grid_thw` says which patches belong to which image."""

    model_type = "qwen2_vl"
    #: The tower without its merger, which is the projector.
    parts: ClassVar[Names] = {
        "vision": ("model.visual.patch_embed", "model.visual.blocks"),
        "projector": ("model.visual.merger",),
        "language": ("model.language_model", "lm_head"),
    }
    image_inputs = ("pixel_values", "image_grid_thw")
    one_sequence = True
    image_types = ("mm_token_type_ids",)
    language_context = ("image_grid_thw", *image_types)
    processors = ("Qwen2VLProcessor",)
    template, template_name, image_text = QWEN2_VL, "Qwen2-VL", "<|vision_start|><image><|vision_end|>"

    def packed_positions(self, model: PreTrainedModel, inputs: Inputs) -> Int[Tensor, "kinds batch sequence"]:
        """In the text, and in time, height and width: those that the model gives each sample in a row of its own."""
        assert inputs.positions is not None
        assert inputs.offsets is not None
        if inputs.images is None:
            return inputs.positions.expand(4, -1, -1)
        columns = torch.arange(int(inputs.lengths.max()), device=inputs.tokens.device)
        mask = columns < inputs.lengths[:, None]
        places = (inputs.offsets[:, None] + columns).where(mask, 0)
        types = {name: one.flatten()[places] for name, one in inputs.types.items()}
        alone, _ = model.model.get_rope_index(
            inputs.tokens.flatten()[places], attention_mask=mask.long(), **self.language_inputs(inputs.images, types)
        )
        packed = alone.new_zeros(3, inputs.tokens.numel())
        packed[:, places[mask]] = alone[:, mask]
        return torch.cat([inputs.positions[None], packed.unflatten(1, inputs.tokens.shape)])

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> Projected:
        """In the order of the tokens, one tensor for each image."""
        (merged,) = projected
        images = self.split(merged[self.windows(media).argsort()], media)
        return Projected(pooler_output=cast(Any, images))

    def split(self, merged: Tensor, media: Media) -> tuple[Tensor, ...]:
        """One tensor for each image."""
        counts = media["image_grid_thw"].prod(-1) // self.merge_size**2
        return torch.split(merged, counts.tolist())

    def windows(self, media: Media) -> Int[Tensor, " blocks"]:
        """Which block stands at each place of the features."""
        grids = media["image_grid_thw"]
        return torch.arange(int(grids.prod(-1).sum()) // self.merge_size**2, device=grids.device)

    def grid_shapes(self, media: Media) -> list[tuple[int, int]]:
        """As `image_grid_thw` says: one for each image, or for each two frames of a video."""
        return [(h, w) for t, h, w in media["image_grid_thw"].tolist() for _ in range(t)]

    def places(self, media: Media) -> Int[Tensor, " patches"]:
        """In the merger's order: block after block."""
        merge = self.merge_size
        blocks, begin = [], 0
        for h, w in self.grid_shapes(media):
            patches = torch.arange(begin, begin + h * w).view(h // merge, merge, w // merge, merge)
            blocks.append(patches.transpose(1, 2).reshape(-1, merge * merge))
            begin += h * w
        windows = self.windows(media)
        return torch.cat(blocks).to(windows.device)[windows].flatten()

    def blank(self) -> Media:
        """One block of patches."""
        vision, merge = self.config.vision_config, self.merge_size
        values = vision.in_channels * one(vision.temporal_patch_size) * one(vision.patch_size) ** 2
        return {"pixel_values": torch.ones(merge**2, values), "image_grid_thw": torch.tensor([[1, merge, merge]])}

    def photograph(self) -> Media:
        """In whole blocks of patches."""
        block = one(self.config.vision_config.patch_size) * self.merge_size
        height, width = (round(side / block) * self.merge_size for side in PHOTOGRAPH)
        pixels = self.blank()["pixel_values"]
        return {
            "pixel_values": pixels.new_ones(height * width, pixels.shape[1]),
            "image_grid_thw": torch.tensor([[1, height, width]]),
        }

    @property
    def merge_size(self) -> int:
        """One visual token is merge size × merge size patches."""
        return int(self.config.vision_config.spatial_merge_size)

    def sizes(self) -> dict[str, int]:
        """The number of tokens follows from them and the image."""
        vision = self.config.vision_config
        return {
            "feature_width": vision.embed_dim if self.model_type == "qwen2_vl" else vision.hidden_size,
            "patch_size": one(vision.patch_size),
            "frames_per_patch": one(vision.temporal_patch_size),
            "merge_size": self.merge_size,
        }


class Qwen25VL(Qwen2VL):
    """The tower keeps patches in the order of its attention windows, and the projected ones are put back."""

    model_type = "qwen2_5_vl"
    processors = ("Qwen2_5_VLProcessor",)

    def windows(self, media: Media) -> Int[Tensor, " blocks"]:
        """Which block stands at each place of the features."""
        grids, vision = media["image_grid_thw"], self.config.vision_config
        order, _ = get_vision_window_index(grids, self.merge_size, vision.window_size, vision.patch_size)
        return order.to(grids.device)

    def sizes(self) -> dict[str, int]:
        """The windows decide the order of the features, so they must agree."""
        return super().sizes() | {"window_size": self.config.vision_config.window_size}


class Qwen3VL(Qwen2VL):
    """Features are what all mergers receive, side by side, the last layer first: DeepStack adds layers of V to the first layers of L."""

    model_type = "qwen3_vl"
    parts: ClassVar[Names] = {
        **Qwen2VL.parts,
        "vision": ("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
        "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
    }
    processors = ("Qwen3VLProcessor",)
    template, template_name = QWEN3_VL, "Qwen3-VL"

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> Projected:
        """One tensor for each image, and the layers that go into L further up."""
        images, *layers = [cast(Any, self.split(merged, media)) for merged in projected]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=images, deepstack_features=layers)

    def sizes(self) -> dict[str, int]:
        """Each layer that is projected separately adds its width."""
        sizes, layers = super().sizes(), len(self.config.vision_config.deepstack_visual_indexes)
        return sizes | {"feature_width": sizes["feature_width"] * (1 + layers), "deepstack_layers": layers}
