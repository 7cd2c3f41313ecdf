"""LLaVA 1.5 and its kin, TinyLLaVA among them; LLaVA-NeXT and LLaVA-OneVision, which cut an image into tiles."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from switchkd.models.families.family import Family, one, share
from switchkd.types import Batch

PARTS = {
    "vision": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "language": ("model.language_model", "lm_head"),
}
#: The vector at the end of each row of tiles has the language model's width: it belongs to the projector.
WITH_NEWLINE = PARTS | {"projector": ("model.multi_modal_projector", "model.image_newline")}


class Llava(Family):
    """V is the vision tower up to `vision_feature_layer`, P the two-layer MLP behind it."""

    def sizes(self, config: PretrainedConfig) -> dict[str, int]:
        """Without the class token where the strategy is `default`."""
        vision = config.vision_config
        side = one(vision.image_size) // one(vision.patch_size)
        tokens = (
            side**2 + (vision.model_type == "clip_vision_model") - (config.vision_feature_select_strategy == "default")
        )
        layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
        return {
            "feature width": vision.hidden_size * layers,
            self.counted: tokens,
            "grid side": side,
            "image size in pixels": one(vision.image_size),
        }

    @property
    def counted(self) -> str:
        """What has a fixed number of visual tokens."""
        return "visual tokens per image"


class Tiled(Llava):
    """`pixel_values` is [images, tiles, …], padded; the projected tiles are put together to the image, with a newline after each row."""

    @property
    def counted(self) -> str:
        """What has a fixed number of visual tokens."""
        return "visual tokens per tile"

    def split(self, config: PretrainedConfig, batch: Batch) -> list[int]:
        """The number of tiles of each image."""
        pinpoints, side = config.image_grid_pinpoints, config.vision_config.image_size
        return [image_size_to_num_patches(size, pinpoints, side) for size in batch["image_sizes"]]

    def tiles(self, config: PretrainedConfig, batch: Batch) -> int:
        """Of all images."""
        return sum(self.split(config, batch))

    def blank(self, config: PretrainedConfig) -> Batch:
        """One image of the size of a tile."""
        side = config.vision_config.image_size
        batch = cast(Batch, {"image_sizes": torch.tensor([[side, side]]), "batch_num_images": torch.tensor([1])})
        batch["pixel_values"] = torch.ones(1, *self.split(config, batch), 3, side, side)
        return batch

    def pack(self, model: PreTrainedModel, projected: list[Tensor], batch: Batch) -> BaseModelOutputWithPooling:
        """By the model's own packing."""
        (only,) = projected
        config = model.config
        images, _ = model.model.pack_image_features(
            torch.split(only, self.split(config, batch)),
            batch["image_sizes"],
            image_newline=model.model.image_newline,
            **self.packing(config),
        )
        return BaseModelOutputWithPooling(pooler_output=cast(Any, images))

    def packing(self, config: PretrainedConfig) -> dict[str, Any]:
        """What else the model's packing takes."""
        return {"vision_feature_select_strategy": config.vision_feature_select_strategy}

    def pictures_of_rows(
        self, config: PretrainedConfig, batch: Batch, projected: BaseModelOutputWithPooling, tokens: list[int]
    ) -> list[int]:
        """The tiles of its images: how many tokens an image has is known after packing alone."""
        images = share([len(image) for image in cast(Any, projected.pooler_output)], tokens)
        tiles = iter(self.split(config, batch))
        return [sum(next(tiles) for _ in range(count)) for count in images]


class OneVision(Tiled):
    """Only an image that is alone in its row is cut into tiles; too many tokens are interpolated away after the projector."""

    def split(self, config: PretrainedConfig, batch: Batch) -> list[int]:
        """The number of tiles of each image."""
        alone = [n == 1 for n in batch["batch_num_images"].tolist() for _ in range(n)]
        return [n if single else 1 for n, single in zip(super().split(config, batch), alone, strict=True)]

    def packing(self, config: PretrainedConfig) -> dict[str, Any]:
        """What else the model's packing takes."""
        return {"vision_aspect_ratio": config.vision_aspect_ratio}


LLAVA = Llava(
    model_type="llava",
    parts=PARTS,
    tested={"vision_config": ("clip_vision_model", "siglip_vision_model"), "text_config": ("llama", "qwen2")},
)
LLAVA_NEXT = Tiled(
    model_type="llava_next",
    parts=WITH_NEWLINE,
    images=("pixel_values", "image_sizes"),
    tested={"vision_config": ("clip_vision_model",), "text_config": ("llama", "mistral")},
)
LLAVA_ONEVISION = OneVision(
    model_type="llava_onevision",
    parts=WITH_NEWLINE,
    images=("pixel_values", "image_sizes", "batch_num_images"),
    tested={"vision_config": ("siglip_vision_model",), "text_config": ("qwen2",)},
)
