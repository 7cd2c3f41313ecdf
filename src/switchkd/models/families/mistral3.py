"""Mistral3: Pixtral vision at any resolution, a projector that merges 2 × 2 patches."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from switchkd.batch import Media
from switchkd.models.coarse import coarse
from switchkd.models.families.chat_blocks import content
from switchkd.models.families.family import PHOTOGRAPH, Family, Features, Names, one
from switchkd.models.families.llava import PARTS

#: Without the system prompt that Mistral's own template writes where the conversation has none.
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
CONTENT{{- eos_token -}}
{%- elif message['role'] == 'system' -%}
{{- '[SYSTEM_PROMPT]' -}}CONTENT{{- '[/SYSTEM_PROMPT]' -}}
{%- else -%}
{{- '[INST]' -}}CONTENT{{- '[/INST]' -}}
{%- endif -%}
{%- endfor -%}""".replace("CONTENT", content("<image>"))


class Mistral3(Family):
    """Each image row by row; `image_sizes` says how many patches it has."""

    model_type = "mistral3"
    parts = PARTS
    image_inputs = ("pixel_values", "image_sizes")
    one_sequence = True
    tested: ClassVar[Names] = {"vision_config": ("pixtral",), "text_config": ("mistral",)}
    processors = ("PixtralProcessor",)
    template, template_name, image_text = TEMPLATE, "Mistral3", "<image>"

    def prepare(self, model: PreTrainedModel) -> None:
        """transformers drops the first dimension of what is projected where it is 1, which one token alone is: now it always is."""
        for door in self.doors(model):
            door.register_forward_hook(lambda module, inputs, output: output.reshape(1, -1, output.shape[-1]))

    def enter(self, door: nn.Module, features: Features, media: Media) -> Tensor:
        """The projector must know the images' sizes to find neighbours."""
        return cast(Tensor, door(features, media["image_sizes"]))[0]

    def grid_shapes(self, media: Media) -> list[tuple[int, int]]:
        """As `image_sizes` says."""
        patch = one(self.config.vision_config.patch_size)
        return [(height // patch, width // patch) for height, width in media["image_sizes"].tolist()]

    def blank(self) -> Media:
        """One visual token."""
        side = one(self.config.vision_config.patch_size) * self.config.spatial_merge_size
        return {"pixel_values": torch.ones(1, 3, side, side), "image_sizes": torch.tensor([[side, side]])}

    def photograph(self) -> Media:
        """In whole blocks of patches."""
        block = one(self.config.vision_config.patch_size) * self.config.spatial_merge_size
        height, width = (-(-side // block) * block for side in PHOTOGRAPH)
        return {"pixel_values": torch.ones(1, 3, height, width), "image_sizes": torch.tensor([[height, width]])}

    def coarse(self, media: Media, detail: float) -> Media:
        """Without the padding of smaller images, which would get into them."""
        pixels = media["pixel_values"].clone()
        for image, (height, width) in zip(pixels, media["image_sizes"].tolist(), strict=True):
            image[:, :height, :width] = coarse(image[:, :height, :width], detail)
        return {**media, "pixel_values": pixels}

    def sizes(self) -> dict[str, int]:
        """The number of tokens follows from them and the image."""
        vision = self.config.vision_config
        return {
            "feature_width": vision.hidden_size,
            "patch_size": one(vision.patch_size),
            "merge_size": self.config.spatial_merge_size,
        }
