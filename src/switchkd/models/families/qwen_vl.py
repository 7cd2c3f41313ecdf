"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, one long sequence of patches in which the merger's blocks of 2 × 2 stay together."""

import re
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_window_index

from switchkd.batch import Inputs, Media
from switchkd.models.coarse import coarse
from switchkd.models.families.chat_blocks import CHATML_WITH_VIDEOS
from switchkd.models.families.family import PHOTOGRAPH, Family, Names, Projected, one
from switchkd.names import Kind

#: ChatML with marks around an image or a video.
QWEN3_VL = re.sub(r"'(<image>|<video>)\\n'", r"'<|vision_start|>\1<|vision_end|>'", CHATML_WITH_VIDEOS)
#: The same, with the system turn that Qwen2-VL and Qwen2.5-VL begin with where the conversation has none.
QWEN2_VL = (
    """{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
    + QWEN3_VL
)


class Qwen2VL(Family):
    """`image_grid_thw` says which patches belong to which image, `video_grid_thw` which to which video. V reads both alike, at once."""

    model_type = "qwen2_vl"
    #: The tower without its merger, which is the projector.
    parts: ClassVar[Names] = {
        "vision": ("model.visual.patch_embed", "model.visual.blocks"),
        "projector": ("model.visual.merger",),
        "language": ("model.language_model", "lm_head"),
    }
    image_inputs = ("pixel_values", "image_grid_thw")
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_grid_thw")
    one_sequence = True
    image_types = ("mm_token_type_ids",)
    language_context: ClassVar[tuple[str, ...]] = ("image_grid_thw", "video_grid_thw", *image_types)
    processors = ("Qwen2VLProcessor",)
    template, template_name, image_text = QWEN2_VL, "Qwen2-VL", "<|vision_start|><image><|vision_end|>"

    def packed_positions(self, model: PreTrainedModel, inputs: Inputs) -> Int[Tensor, "kinds batch sequence"]:
        """In the text, and in time, height and width: those that the model gives each sample in a row of its own."""
        assert inputs.positions is not None
        assert inputs.offsets is not None
        if inputs.shown is None:
            return inputs.positions.expand(4, -1, -1)
        columns = torch.arange(int(inputs.lengths.max()), device=inputs.tokens.device)
        mask = columns < inputs.lengths[:, None]
        places = (inputs.offsets[:, None] + columns).where(mask, 0)
        types = {name: one.flatten()[places] for name, one in inputs.types.items()}
        alone, _ = model.model.get_rope_index(
            inputs.tokens.flatten()[places], attention_mask=mask.long(), **self.language_inputs(inputs.shown, types)
        )
        packed = alone.new_zeros(3, inputs.tokens.numel())
        packed[:, places[mask]] = alone[:, mask]
        return torch.cat([inputs.positions[None], packed.unflatten(1, inputs.tokens.shape)])

    def encode(self, model: PreTrainedModel, media: Media) -> None:
        """Videos behind the images: to V they are images of several frames."""
        pixels = [media[name] for name in ("pixel_values", "pixel_values_videos") if name in media]
        model.model.get_image_features(torch.cat(pixels), self.grids(media), return_dict=True)

    def grids(self, media: Media) -> Int[Tensor, "shown 3"]:
        """Pairs of frames, height and width in patches of each image and, behind them, of each video."""
        return torch.cat([media[name] for name in ("image_grid_thw", "video_grid_thw") if name in media])

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> dict[Kind, Projected]:
        """In the order of the tokens, one tensor for each image and video."""
        (merged,) = projected
        images, videos = self.split(merged[self.windows(media).argsort()], media)
        return kinds(*(Projected(pooler_output=cast(Any, parts)) if parts else None for parts in (images, videos)))

    def split(self, merged: Tensor, media: Media) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """One tensor for each image, and one for each video."""
        counts = self.grids(media).prod(-1) // self.merge_size**2
        parts, images = torch.split(merged, counts.tolist()), len(media.get("image_grid_thw", ()))
        return parts[:images], parts[images:]

    def windows(self, media: Media) -> Int[Tensor, " blocks"]:
        """Which block stands at each place of the features."""
        grids = self.grids(media)
        return torch.arange(int(grids.prod(-1).sum()) // self.merge_size**2, device=grids.device)

    def grid_shapes(self, media: Media) -> list[tuple[int, int]]:
        """One for each image, and for each two frames of a video."""
        return [(h, w) for t, h, w in self.grids(media).tolist() for _ in range(t)]

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

    def coarse(self, media: Media, detail: float) -> Media:
        """The patches are put together to pictures, which are made coarse, and cut up again."""
        changed, vision, merge = dict(media), self.config.vision_config, self.merge_size
        frames, patch = one(vision.temporal_patch_size), one(vision.patch_size)
        for name, grid in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
            if name not in media:
                continue
            parts = []
            sizes = media[grid].tolist()
            for patches, (t, h, w) in zip(media[name].split([t * h * w for t, h, w in sizes]), sizes, strict=True):
                blocks = patches.view(t, h // merge, w // merge, merge, merge, -1, frames, patch, patch)
                pictures = blocks.permute(0, 5, 6, 1, 3, 7, 2, 4, 8)
                shown = coarse(pictures.reshape(t, -1, h * patch, w * patch), detail)
                parts.append(shown.view(pictures.shape).permute(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(patches.shape))
            changed[name] = torch.cat(parts)
        return changed

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
    #: The seconds between frames decide positions.
    language_context: ClassVar[tuple[str, ...]] = (*Qwen2VL.language_context, "second_per_grid_ts")

    def windows(self, media: Media) -> Int[Tensor, " blocks"]:
        """Which block stands at each place of the features."""
        grids, vision = self.grids(media), self.config.vision_config
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

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> dict[Kind, Projected]:
        """One tensor for each image and video, and the layers that go into L further up."""
        images, videos = ([*parts] for parts in zip(*(self.split(merged, media) for merged in projected), strict=True))
        return kinds(*(_deep(parts) if parts[0] else None for parts in (images, videos)))

    def sizes(self) -> dict[str, int]:
        """Each layer that is projected separately adds its width."""
        sizes, layers = super().sizes(), len(self.config.vision_config.deepstack_visual_indexes)
        return sizes | {"feature_width": sizes["feature_width"] * (1 + layers), "deepstack_layers": layers}


def kinds(image: Projected | None, video: Projected | None) -> dict[Kind, Projected]:
    """Those that are there."""
    both: dict[Kind, Projected | None] = {"image": image, "video": video}
    return {kind: one for kind, one in both.items() if one is not None}


def _deep(layers: list[tuple[Tensor, ...]]) -> Projected:
    first, *others = layers
    return BaseModelOutputWithDeepstackFeatures(pooler_output=cast(Any, first), deepstack_features=cast(Any, others))
