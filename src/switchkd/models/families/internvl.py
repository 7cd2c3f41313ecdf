"""InternVL: four neighbouring patches become one token before the projector sees them."""

from transformers import PretrainedConfig

from switchkd.models.families.family import Family, one
from switchkd.models.families.llava import PARTS


class InternVL(Family):
    """`pixel_values` is [tiles of all images, …]."""

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """Of what the projector receives: fewer and wider tokens than the vision encoder's."""
        vision = config.vision_config
        joined = round(1 / config.downsample_ratio)
        side = one(vision.image_size) // one(vision.patch_size) // joined
        return {
            "feature width": vision.hidden_size * joined**2,
            "visual tokens per tile": side**2,
            "grid side": side,
            "image size in pixels": one(vision.image_size),
        }


INTERNVL = InternVL(
    model_type="internvl",
    parts=PARTS,
    tested={"text_config": ("qwen2", "qwen3")},
    one_tensor=True,
)
