"""LLaVA 1.5 and its kin, TinyLLaVA among them; LLaVA-NeXT and LLaVA-OneVision, which cut an image into tiles."""

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from switchkd.batch import Media
from switchkd.models.families.chat_blocks import CHATML, CHATML_WITH_VIDEOS, content
from switchkd.models.families.family import PHOTOGRAPH, Family, Names, Projected, share
from switchkd.names import Kind

PARTS = {
    "vision": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "language": ("model.language_model", "lm_head"),
}

#: LLaVA 1.5 and TinyLLaVA ("vicuna v1"). The space before an answer belongs to it, as the prompt ends in `ASSISTANT:`.
VICUNA = """{%- if messages[0]['role'] != 'system' -%}
{{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- 'ASSISTANT:' -}}
{{- ' ' -}}CONTENT{{- eos_token -}}
{%- else -%}
{%- if message['role'] == 'user' -%}{{- 'USER: ' -}}{%- endif -%}
CONTENT{{- ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}""".replace("CONTENT", content("<image>\\n"))


class Llava(Family):
    """V is the vision tower up to `vision_feature_layer`, P the two-layer MLP behind it."""

    model_type = "llava"
    parts = PARTS
    tested: ClassVar[Names] = {
        "vision_config": ("clip_vision_model", "siglip_vision_model"),
        "text_config": ("llama", "qwen2"),
    }
    processors = ("LlavaProcessor",)

    @classmethod
    def choose_template(cls, own: str | None, special: set[str]) -> tuple[str, str] | None:
        """The language model may be any, so the tokenizer decides: ChatML where it and `own` have its marks, else that of LLaVA 1.5."""
        if {"<|im_start|>", "<|im_end|>"} <= special and (own is None or "<|im_start|>" in own):
            return "ChatML", CHATML if cls.video_inputs is None else CHATML_WITH_VIDEOS
        return ("LLaVA (vicuna)", VICUNA) if own is None or "ASSISTANT:" in own else None

    def sizes(self) -> dict[str, int]:
        """As many tokens for every image: without the class token where the strategy is `default`."""
        sizes, layers = super().sizes(), self.config.vision_feature_layer
        class_token = self.config.vision_config.model_type == "clip_vision_model"
        left_out = self.config.vision_feature_select_strategy == "default"
        return sizes | {
            "feature_width": sizes["feature_width"] * (1 if isinstance(layers, int) else len(layers)),
            "tokens_per_image": sizes["grid_side"] ** 2 + class_token - left_out,
        }


class LlavaNext(Llava):
    """`pixel_values` is [images, tiles, …], padded; the projected tiles are put together to the image, with a newline after each row."""

    model_type = "llava_next"
    #: The vector at the end of each row of tiles has the language model's width: it belongs to the projector.
    parts = PARTS | {"projector": ("model.multi_modal_projector", "model.image_newline")}
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")
    tested: ClassVar[Names] = {"vision_config": ("clip_vision_model",), "text_config": ("llama", "mistral")}
    processors = ("LlavaNextProcessor",)

    def sizes(self) -> dict[str, int]:
        """As many tokens for every tile."""
        sizes = super().sizes()
        return {"tokens_per_tile": sizes.pop("tokens_per_image"), **sizes}

    def tile_counts(self, media: Media) -> list[int]:
        """The number of tiles of each image."""
        pinpoints, side = self.config.image_grid_pinpoints, self.config.vision_config.image_size
        return [image_size_to_num_patches(size, pinpoints, side) for size in media["image_sizes"]]

    def picture_count(self, media: Media) -> int:
        """The tiles of all images."""
        return sum(self.tile_counts(media))

    def blank(self) -> Media:
        """One image of the size of a tile."""
        return self._image(*[self.config.vision_config.image_size] * 2)

    def photograph(self) -> Media:
        """In the tiles of the resolution that fits it best."""
        return self._image(*PHOTOGRAPH)

    def _image(self, height: int, width: int) -> Media:
        side = self.config.vision_config.image_size
        media = {"image_sizes": torch.tensor([[height, width]]), "batch_num_images": torch.tensor([1])}
        return media | {"pixel_values": torch.ones(1, *self.tile_counts(media), 3, side, side)}

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> dict[Kind, Projected]:
        """By the model's own packing."""
        (only,) = projected
        images, _ = model.model.pack_image_features(
            torch.split(only, self.tile_counts(media)),
            media["image_sizes"],
            image_newline=model.model.image_newline,
            **self.packing(),
        )
        return {"image": Projected(pooler_output=images)}

    def packing(self) -> dict[str, Any]:
        """What else the model's packing takes."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}

    def pictures_of_samples(self, media: Media, projected: Projected, tokens: list[int]) -> list[int]:
        """The tiles of its images: how many tokens an image has is known after packing alone."""
        images = share([len(image) for image in cast(Any, projected.pooler_output)], tokens)
        tiles = iter(self.tile_counts(media))
        return [sum(next(tiles) for _ in range(count)) for count in images]


class LlavaOneVision(LlavaNext):
    """Only an image that is alone in its sample is cut into tiles; too many tokens are interpolated away after the projector.

    `pixel_values_videos` is [videos, frames, …]; of a shorter video, the frames that fill it up are zero everywhere. Each frame has a
    quarter of an image's tokens, and each video a newline behind the last one.
    """

    model_type = "llava_onevision"
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes", "batch_num_images")
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)
    tested: ClassVar[Names] = {"vision_config": ("siglip_vision_model",), "text_config": ("qwen2",)}
    processors = ("LlavaOnevisionProcessor",)

    def tile_counts(self, media: Media) -> list[int]:
        """The number of tiles of each image."""
        if "image_sizes" not in media:
            return []
        alone = [n == 1 for n in media["batch_num_images"].tolist() for _ in range(n)]
        return [n if single else 1 for n, single in zip(super().tile_counts(media), alone, strict=True)]

    def packing(self) -> dict[str, Any]:
        """What else the model's packing takes."""
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}

    def frame_counts(self, media: Media) -> list[int]:
        """The number of frames of each video."""
        if "pixel_values_videos" not in media:
            return []
        shown = media["pixel_values_videos"].flatten(2).any(dim=-1)
        places = torch.arange(1, shown.shape[1] + 1, device=shown.device)
        return cast(list[int], (shown * places).amax(dim=1).tolist())

    def picture_count(self, media: Media) -> int:
        """The tiles of all images, and the frames of all videos."""
        return super().picture_count(media) + sum(self.frame_counts(media))

    def encode(self, model: PreTrainedModel, media: Media) -> None:
        """Frames behind the tiles, as if all were frames of one video: V and P take each by itself."""
        if "pixel_values_videos" not in media:
            super().encode(model, media)
            return
        tiles = zip(media.get("pixel_values", ()), self.tile_counts(media), strict=True)
        frames = zip(media["pixel_values_videos"], self.frame_counts(media), strict=True)
        model.model.get_video_features(
            torch.cat([one[:count] for one, count in (*tiles, *frames)])[None], return_dict=True
        )

    def pack(self, model: PreTrainedModel, projected: list[Tensor], media: Media) -> dict[Kind, Projected]:
        """Images by the model's own packing; frames by its own pooling, with a newline behind each video."""
        (only,) = projected
        frames = self.frame_counts(media)
        tiles = len(only) - sum(frames)
        packed = super().pack(model, [only[:tiles]], media) if tiles else {}
        if not frames:
            return packed
        pooled = model.model.apply_pooling(only[tiles:])
        newline = model.model.image_newline[None].to(pooled.device)
        videos = [torch.cat([video.flatten(0, 1), newline]) for video in pooled.split(frames)]
        return packed | {"video": Projected(pooler_output=torch.cat(videos)[None])}

    def pictures_of_samples(self, media: Media, projected: Projected, tokens: list[int]) -> list[int]:
        """The tiles of its images, or the frames of its videos."""
        frames = self.frame_counts(media)
        if not frames:
            return super().pictures_of_samples(media, projected, tokens)
        side = math.ceil(self.sizes()["grid_side"] / 2)
        videos = share([count * side**2 + 1 for count in frames], tokens)
        left = iter(frames)
        return [sum(next(left) for _ in range(count)) for count in videos]
