"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any resolution, as one long row of patches in which the merger's blocks of 2 × 2 stay together."""

from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_window_index

from switchkd.models.families.family import Family, Features, Map, one
from switchkd.types import Batch

#: The tower without its merger, which is the projector.
PARTS = {
    "vision": ("model.visual.patch_embed", "model.visual.blocks"),
    "projector": ("model.visual.merger",),
    "language": ("model.language_model", "lm_head"),
}
#: Layers of V are projected apart and added to the first layers of L: what L receives, so the projector's.
DEEPSTACK = PARTS | {
    "vision": ("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
    "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
}
IMAGES = ("pixel_values", "image_grid_thw")
CONTEXT = ("image_grid_thw", "mm_token_type_ids")


class QwenVL(Family):
    """Features are [patches of all images, width]; `image_grid_thw` says what belongs to which image."""

    def pack(self, model: PreTrainedModel, projected: list[Tensor], batch: Batch) -> BaseModelOutputWithPooling:
        """In the order of the tokens, one tensor for each image."""
        (merged,) = projected
        images = self.split(merged[self.windows(model.config, batch).argsort()], model.config, batch)
        return BaseModelOutputWithPooling(pooler_output=cast(Any, images))

    def split(self, merged: Tensor, config: PretrainedConfig, batch: Batch) -> tuple[Tensor, ...]:
        """One tensor for each image."""
        counts = batch["image_grid_thw"].prod(-1) // config.vision_config.spatial_merge_size**2
        return merged.split(counts.tolist())

    def windows(self, config: PretrainedConfig, batch: Batch) -> Int[Tensor, " blocks"]:
        """Which block stands at each place of the features."""
        grids = batch["image_grid_thw"]
        return torch.arange(
            int(grids.prod(-1).sum()) // config.vision_config.spatial_merge_size**2, device=grids.device
        )

    def maps(self, config: PretrainedConfig, features: Features, batch: Batch) -> list[Map]:
        """One for each image; for each two frames of a video."""
        pictures = features[self._places(config, batch).argsort()]
        shapes = self.shapes(config, batch)
        parts = pictures.split([height * width for height, width in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def unmaps(self, config: PretrainedConfig, maps: list[Map], batch: Batch) -> Features:
        """In the merger's order."""
        found = [tuple(picture.shape[:2]) for picture in maps]
        if found != (wanted := self.shapes(config, batch)):
            raise ValueError(f"the maps are {found} patches large, the batch has {wanted}")
        return torch.cat([picture.flatten(0, 1) for picture in maps])[self._places(config, batch)]

    def shapes(self, config: PretrainedConfig, batch: Batch) -> list[tuple[int, int]]:
        """As `image_grid_thw` says."""
        return [(h, w) for t, h, w in batch["image_grid_thw"].tolist() for _ in range(t)]

    def _places(self, config: PretrainedConfig, batch: Batch) -> Int[Tensor, " patches"]:
        """Which patch, counted in rows over all pictures, stands at each place of the features."""
        merge = config.vision_config.spatial_merge_size
        blocks, begin = [], 0
        for h, w in self.shapes(config, batch):
            rows = torch.arange(begin, begin + h * w).view(h // merge, merge, w // merge, merge)
            blocks.append(rows.transpose(1, 2).reshape(-1, merge * merge))
            begin += h * w
        windows = self.windows(config, batch)
        return torch.cat(blocks).to(windows.device)[windows].flatten()

    def blank(self, config: PretrainedConfig) -> Batch:
        """One block of patches."""
        vision = config.vision_config
        values = vision.in_channels * one(vision.temporal_patch_size) * one(vision.patch_size) ** 2
        merge = vision.spatial_merge_size
        grid = torch.tensor([[1, merge, merge]])
        return cast(Batch, {"pixel_values": torch.ones(merge**2, values), "image_grid_thw": grid})

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """One visual token is merge size × merge size patches."""
        vision = config.vision_config
        return {
            "feature width": self.width(vision),
            "patch size in pixels": one(vision.patch_size),
            "frames in a patch": one(vision.temporal_patch_size),
            "merge size": vision.spatial_merge_size,
        }

    def width(self, vision: PretrainedConfig) -> int:
        """Of V(x)."""
        return vision.embed_dim if self.model_type == "qwen2_vl" else vision.hidden_size


class Windowed(QwenVL):
    """Qwen2.5-VL: the tower keeps patches in the order of its attention windows, and the projected ones are put back."""

    def windows(self, config: PretrainedConfig, batch: Batch) -> Int[Tensor, " blocks"]:
        """Which block stands at each place of the features."""
        vision = config.vision_config
        order, _ = get_vision_window_index(
            batch["image_grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
        )
        return order.to(batch["image_grid_thw"].device)

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """The windows decide the order of the features, so they must agree."""
        return super().sizes(config) | {"window size in pixels": config.vision_config.window_size}


class DeepStack(QwenVL):
    """Qwen3-VL: features are what all mergers receive, side by side, the last layer first."""

    def pack(self, model: PreTrainedModel, projected: list[Tensor], batch: Batch) -> BaseModelOutputWithPooling:
        """One tensor for each image, and the layers that go into L further up."""
        images, *layers = [self.split(merged, model.config, batch) for merged in projected]
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=cast(Any, images), deepstack_features=cast(Any, layers)
        )

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """Each layer that is projected apart adds its width."""
        return super().sizes(config) | {"deepstack layers": len(config.vision_config.deepstack_visual_indexes)}

    def width(self, vision: PretrainedConfig) -> int:
        """Of V(x)."""
        return vision.hidden_size * (1 + len(vision.deepstack_visual_indexes))


QWEN2_VL = QwenVL(
    model_type="qwen2_vl",
    parts=PARTS,
    images=IMAGES,
    context=CONTEXT,
)
QWEN2_5_VL = Windowed(
    model_type="qwen2_5_vl",
    parts=PARTS,
    images=IMAGES,
    context=CONTEXT,
)
QWEN3_VL = DeepStack(
    model_type="qwen3_vl",
    parts=DEEPSTACK,
    images=IMAGES,
    context=CONTEXT,
)
