"""The processor of a LLaVA that is put together from parts: image token, image processor, chat template."""

from typing import Any, Literal

from tokenizers import AddedToken
from transformers import (
    CLIPImageProcessorPil,
    LlavaConfig,
    LlavaProcessor,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

IMAGE_TOKEN = "<image>"
#: What LLaVA does with an image that is not square: stretch it, or pad it with the mean colour first.
AspectRatio = Literal["square", "pad"]


def place_image_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give `<image>` an id of its own, the first one that is free, and return it."""
    if tokenizer.get_vocab().get(IMAGE_TOKEN) is None:
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, normalized=False, special=True)], special_tokens=True)
    return int(tokenizer.get_vocab()[IMAGE_TOKEN])


def llava_processor(
    tokenizer: PreTrainedTokenizerBase,
    config: LlavaConfig,
    chat_template: str | None,
    aspect_ratio: AspectRatio = "square",
) -> LlavaProcessor:
    """The processor of a LLaVA with a CLIP or SigLIP tower: an image becomes as many placeholders as the projector receives features."""
    vision: Any = config.vision_config
    return LlavaProcessor(
        image_processor=_image_processor(vision, aspect_ratio),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(_is_clip(vision)),  # the class token
        chat_template=chat_template,
        image_token=IMAGE_TOKEN,
    )


def _image_processor(vision: PretrainedConfig, aspect_ratio: AspectRatio) -> Any:
    """What CLIP and SigLIP were published with, at the tower's own resolution."""
    side = vision.image_size
    square = {"height": side, "width": side}
    kind: Any = CLIPImageProcessorPil if _is_clip(vision) else SiglipImageProcessorPil
    sizes: dict[str, Any] = (
        {"size": {"shortest_edge": side}, "crop_size": square} if _is_clip(vision) else {"size": square}
    )
    if aspect_ratio == "square":
        return kind(**sizes)
    padding: dict[str, Any] = {"do_pad": True, "do_center_crop": _is_clip(vision)}
    return LlavaImageProcessorPil(**sizes, **padding, image_mean=list(kind.image_mean), image_std=list(kind.image_std))


def _is_clip(vision: PretrainedConfig) -> bool:
    return bool(vision.model_type == "clip_vision_model")
