"""Idefics3 and SmolVLM: SigLIP vision on tiles, a projector that joins 2 × 2 (or more) neighbours and maps them linearly."""

from typing import ClassVar

from switchkd.batch import Media
from switchkd.models.families.chat_blocks import content
from switchkd.models.families.family import Family, Names

#: The space before an answer belongs to it, as the prompt ends in `Assistant:`.
TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- 'Assistant:' -}}
{{- ' ' -}}CONTENT{{- '<end_of_utterance>' -}}
{%- else -%}
{{- message['role'] | capitalize + ':' -}}
{%- if message['content'] is string or message['content'][0]['type'] != 'image' -%}{{- ' ' -}}{%- endif -%}
CONTENT{{- '<end_of_utterance>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}""".replace("CONTENT", content("<image>", videos=True))


class Idefics3(Family):
    """`pixel_values` is [samples, tiles, …]; a tile that is zero everywhere is padding, and skipped."""

    model_type = "idefics3"
    parts: ClassVar[Names] = {
        "vision": ("model.vision_model",),
        "projector": ("model.connector",),
        "language": ("model.text_model", "lm_head"),
    }
    image_inputs = ("pixel_values", "pixel_attention_mask")
    tile_axis = 1
    tested: ClassVar[Names] = {"text_config": ("llama",)}
    processors = ("Idefics3Processor",)
    template, template_name, image_text = TEMPLATE, "Idefics3", "<image>"

    def picture_count(self, media: Media) -> int:
        """Tiles with pixels."""
        return int(media["pixel_values"].flatten(0, 1).flatten(1).any(dim=1).sum())

    def blank(self) -> Media:
        """One tile."""
        return {"pixel_values": super().blank()["pixel_values"][None]}

    def photograph(self) -> Media:
        """4 × 3 tiles and the whole: its longest side is made four tiles long."""
        pixels = self.blank()["pixel_values"]
        return {"pixel_values": pixels.repeat(1, 13, *[1] * (pixels.ndim - 2))}

    def sizes(self) -> dict[str, int]:
        """Every tile has the same number of tokens."""
        sizes = super().sizes()
        return sizes | {"tokens_per_tile": sizes["grid_side"] ** 2 // self.config.scale_factor**2}


class SmolVLM(Idefics3):
    """As Idefics3, but that images meet the text in the precision of the vision encoder."""

    model_type = "smolvlm"
    one_precision = True
    processors = ("SmolVLMProcessor",)
    video_inputs = ()  # a frame is a tile
