"""PaliGemma, PaliGemma 2 and Gemma 3: SigLIP vision, and token types that let image tokens see one another both ways."""

from transformers import PretrainedConfig

from switchkd.models.families.family import Family, one
from switchkd.models.families.llava import PARTS


class Gemma(Family):
    """Features are the tower's last hidden states; Gemma 3 pools them inside its projector."""

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """Every image has the same number of tokens."""
        vision = config.vision_config
        side = one(vision.image_size) // one(vision.patch_size)
        return {
            "feature width": vision.hidden_size,
            "visual tokens per image": config.mm_tokens_per_image if self.model_type == "gemma3" else side**2,
            "grid side": side,
            "image size in pixels": one(vision.image_size),
        }


PALIGEMMA = Gemma(
    model_type="paligemma",
    parts=PARTS,
    context=("token_type_ids",),
    tested={"vision_config": ("siglip_vision_model",), "text_config": ("gemma", "gemma2")},
    one_tensor=True,
    softcapped=True,
)
GEMMA3 = Gemma(
    model_type="gemma3",
    parts=PARTS,
    context=("token_type_ids",),
    tested={"vision_config": ("siglip_vision_model",), "text_config": ("gemma3_text",)},
    one_tensor=True,
)
