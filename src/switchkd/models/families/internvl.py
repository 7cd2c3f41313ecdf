"""InternVL: four neighbouring patches become one token before the projector sees them."""

from typing import ClassVar

from switchkd.batch import Media
from switchkd.models.families.chat_blocks import CHATML_WITH_VIDEOS
from switchkd.models.families.family import Family, Names
from switchkd.models.families.llava import PARTS


class InternVL(Family):
    """`pixel_values` is [tiles of all images, …]."""

    model_type = "internvl"
    parts = PARTS
    tested: ClassVar[Names] = {"text_config": ("qwen2", "qwen3")}
    one_tensor = True
    video_inputs = ()  # a frame is a tile
    processors = ("InternVLProcessor",)
    template, template_name = CHATML_WITH_VIDEOS, "ChatML"

    def photograph(self) -> Media:
        """4 × 3 tiles and the whole: of at most twelve tiles the most that have its shape."""
        return {"pixel_values": self.blank()["pixel_values"].repeat(13, 1, 1, 1)}

    def sizes(self) -> dict[str, int]:
        """Of what the projector receives: fewer and wider tokens than the vision encoder's."""
        sizes, joined = super().sizes(), round(1 / self.config.downsample_ratio)
        side = sizes["grid_side"] // joined
        width = sizes["feature_width"] * joined**2
        return sizes | {"feature_width": width, "grid_side": side, "tokens_per_tile": side**2}
