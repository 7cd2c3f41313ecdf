"""PaliGemma, PaliGemma 2 and Gemma 3: SigLIP vision, and token types that let image tokens see one another both ways."""

from typing import ClassVar, cast

from switchkd.models.families.chat_blocks import content
from switchkd.models.families.family import Family, Names
from switchkd.models.families.llava import PARTS

#: All images, question, line break, answer. What stands before and behind a question besides is the processor's work: `as_processed`.
PALIGEMMA = """{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}{{- '\\n' -}}CONTENT{{- eos_token -}}{%- else -%}CONTENT{%- endif -%}
{%- if message['role'] == 'system' -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}""".replace("CONTENT", content(""))

#: What the system says stands at the beginning of the first user turn.
GEMMA3 = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<start_of_turn>model\\n' -}}CONTENT{{- '<end_of_turn>\\n' -}}
{%- else -%}
{%- if message['role'] == 'system' or loop.first or messages[loop.index0 - 1]['role'] != 'system' -%}
{{- '<start_of_turn>user\\n' -}}
{%- endif -%}
CONTENT
{%- if message['role'] == 'system' -%}{{- '\\n\\n' -}}{%- else -%}{{- '<end_of_turn>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}""".replace(
    "CONTENT", content("<image>", trimmed=True)
)


class PaliGemma(Family):
    """Features are the tower's last hidden states. Before the first answer all is seen both ways, also padding that is not masked."""

    model_type = "paligemma"
    parts = PARTS
    language_context = ("token_type_ids",)
    tested: ClassVar[Names] = {"vision_config": ("siglip_vision_model",), "text_config": ("gemma", "gemma2")}
    one_tensor = True
    padding_mask = True
    unpackable = "what stands before the first answer sees all of it both ways"
    processors = ("PaliGemmaProcessor",)
    template, template_name, image_text = PALIGEMMA, "PaliGemma", "<image>"

    @classmethod
    def token_types(
        cls, tokens: list[int], is_answer: list[bool], image_token_id: int, video_token_id: int | None = None
    ) -> dict[str, list[int]]:
        """1 from the first answer on."""
        first = is_answer.index(True) if any(is_answer) else len(tokens)
        return {"token_type_ids": [int(place >= first) for place in range(len(tokens))]}

    @classmethod
    def as_processed(cls, text: str, image_token: str, bos_token: str, *, asked: bool) -> str:
        """Its processor puts `<bos>` behind the last image, and a line break behind a question."""
        end = text.rfind(image_token)
        end = 0 if end < 0 else end + len(image_token)
        return text[:end] + bos_token + text[end:] + ("\n" if asked else "")

    @property
    def softcap(self) -> float | None:
        """PaliGemma 2 has one."""
        return cast(float | None, getattr(self.config.get_text_config(), "final_logit_softcapping", None))

    def sizes(self) -> dict[str, int]:
        """Every patch is a token."""
        sizes = super().sizes()
        return sizes | {"tokens_per_image": sizes["grid_side"] ** 2}


class Gemma3(Family):
    """Features are the tower's last hidden states; the projector pools them."""

    model_type = "gemma3"
    parts = PARTS
    language_context = image_types = ("token_type_ids",)
    tested: ClassVar[Names] = {"vision_config": ("siglip_vision_model",), "text_config": ("gemma3_text",)}
    one_tensor = True
    unpackable = "the tokens of an image see one another both ways"
    processors = ("Gemma3Processor",)
    template, template_name, image_text = GEMMA3, "Gemma 3", "<image>"

    def sizes(self) -> dict[str, int]:
        """Every image has the same number of tokens."""
        return super().sizes() | {"tokens_per_image": self.config.mm_tokens_per_image}
