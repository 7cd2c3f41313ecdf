"""Idefics3 and SmolVLM: SigLIP vision on tiles, a projector that joins 2 × 2 (or more) neighbours and maps them linearly."""

from typing import cast

from transformers import PretrainedConfig

from switchkd.models.families.family import Family, one
from switchkd.types import Batch

PARTS = {
    "vision": ("model.vision_model",),
    "projector": ("model.connector",),
    "language": ("model.text_model", "lm_head"),
}
IMAGES = ("pixel_values", "pixel_attention_mask")


class Idefics3(Family):
    """`pixel_values` is [rows, tiles, …]; a tile that is zero everywhere is padding, and skipped."""

    def tiles(self, config: PretrainedConfig, batch: Batch) -> int:
        """Those with pixels."""
        return int(batch["pixel_values"].flatten(0, 1).flatten(1).any(dim=1).sum())

    def blank(self, config: PretrainedConfig) -> Batch:
        """One tile."""
        return cast(Batch, {"pixel_values": super().blank(config)["pixel_values"][None]})

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """Every tile has the same number of tokens."""
        vision = config.vision_config
        side = one(vision.image_size) // one(vision.patch_size)
        return {
            "feature width": vision.hidden_size,
            "visual tokens per tile": side**2 // config.scale_factor**2,
            "grid side": side,
            "image size in pixels": one(vision.image_size),
        }


IDEFICS3 = Idefics3(
    model_type="idefics3",
    parts=PARTS,
    images=IMAGES,
    tested={"text_config": ("llama",)},
)
SMOLVLM = Idefics3(
    model_type="smolvlm",
    parts=PARTS,
    images=IMAGES,
    tested={"text_config": ("llama",)},
)
