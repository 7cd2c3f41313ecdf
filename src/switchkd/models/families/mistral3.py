"""Mistral3: Pixtral vision at any resolution, a projector that merges 2 × 2 patches."""

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from switchkd.models.families.family import Family, Features, Map, one
from switchkd.models.families.llava import PARTS
from switchkd.types import Batch


class Mistral3(Family):
    """Features are [patches of all images, width], each image row by row; `image_sizes` says how many."""

    def enter(self, door: nn.Module, features: Features, batch: Batch) -> Tensor:
        """The projector must know the images' sizes to find neighbours."""
        return door(features, batch["image_sizes"])

    def maps(self, config: PretrainedConfig, features: Features, batch: Batch) -> list[Map]:
        """One for each image."""
        shapes = self.shapes(config, batch)
        parts = features.split([height * width for height, width in shapes])
        return [part.unflatten(0, shape) for part, shape in zip(parts, shapes, strict=True)]

    def unmaps(self, config: PretrainedConfig, maps: list[Map], batch: Batch) -> Features:
        """Image after image, row after row."""
        found = [tuple(picture.shape[:2]) for picture in maps]
        if found != (wanted := self.shapes(config, batch)):
            raise ValueError(f"the maps are {found} patches large, the batch has {wanted}")
        return torch.cat([picture.flatten(0, 1) for picture in maps])

    def shapes(self, config: PretrainedConfig, batch: Batch) -> list[tuple[int, int]]:
        """As `image_sizes` says."""
        patch = one(config.vision_config.patch_size)
        return [(height // patch, width // patch) for height, width in batch["image_sizes"].tolist()]

    def blank(self, config: PretrainedConfig) -> Batch:
        """Four visual tokens: transformers 5.23 fails on an image of one."""
        side = one(config.vision_config.patch_size) * config.spatial_merge_size * 2
        return cast(Batch, {"pixel_values": torch.ones(1, 3, side, side), "image_sizes": torch.tensor([[side, side]])})

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """One visual token is merge size × merge size patches."""
        vision = config.vision_config
        return {
            "feature width": vision.hidden_size,
            "patch size in pixels": one(vision.patch_size),
            "merge size": config.spatial_merge_size,
        }


MISTRAL3 = Mistral3(
    model_type="mistral3",
    parts=PARTS,
    images=("pixel_values", "image_sizes"),
    tested={"vision_config": ("pixtral",), "text_config": ("mistral",)},
)
