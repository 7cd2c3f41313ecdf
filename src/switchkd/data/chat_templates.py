"""Chat templates with marked answers, for processors whose own do not mark them; and the token types that language models ask for.

The templates write what the families' own templates write, and `<image>` for the processor's image token.
"""

_PARTS = """{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ 'IMAGE' }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}"""
_LINE = _PARTS.replace("IMAGE", "<image>\\n")
_BARE = _PARTS.replace("IMAGE", "<image>")
_TRIMMED = _BARE.replace(" }}{%- endif", " | trim }}{%- endif").replace("content'] }}", "content'] | trim }}")

#: ChatML, for LLaVA with a Qwen2 language model and for InternVL.
CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}CONTENT{{- '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
CONTENT{{- '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}""".replace("CONTENT", _LINE)

#: LLaVA 1.5 and TinyLLaVA ("vicuna v1"). The space before an answer belongs to it, as the prompt ends in `ASSISTANT:`.
VICUNA = """{%- if messages[0]['role'] != 'system' -%}
{{- 'A chat between a curious user and an artificial intelligence assistant. ' -}}
{{- "The assistant gives helpful, detailed, and polite answers to the user's questions. " -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- 'ASSISTANT:' -}}
{%- generation -%}{{- ' ' -}}CONTENT{{- eos_token -}}{%- endgeneration -%}
{%- else -%}
{%- if message['role'] == 'user' -%}{{- 'USER: ' -}}{%- endif -%}
CONTENT{{- ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}""".replace("CONTENT", _LINE)

#: ChatML with Qwen's marks around an image.
QWEN3_VL = CHATML.replace("'<image>\\n'", "'<|vision_start|><image><|vision_end|>'")

#: The same, with the system turn that Qwen2-VL and Qwen2.5-VL begin with where the row has none.
QWEN2_VL = (
    """{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
    + QWEN3_VL
)

#: Idefics3 and SmolVLM. The space before an answer belongs to it, as the prompt ends in `Assistant:`.
IDEFICS3 = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- 'Assistant:' -}}
{%- generation -%}{{- ' ' -}}CONTENT{{- '<end_of_utterance>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['role'] | capitalize + ':' -}}
{%- if message['content'] is string or message['content'][0]['type'] != 'image' -%}{{- ' ' -}}{%- endif -%}
CONTENT{{- '<end_of_utterance>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}""".replace("CONTENT", _BARE)

#: Gemma 3. What the system says stands at the beginning of the first user turn.
GEMMA3 = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<start_of_turn>model\\n' -}}
{%- generation -%}CONTENT{{- '<end_of_turn>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{%- if message['role'] == 'system' or loop.first or messages[loop.index0 - 1]['role'] != 'system' -%}
{{- '<start_of_turn>user\\n' -}}
{%- endif -%}
CONTENT
{%- if message['role'] == 'system' -%}{{- '\\n\\n' -}}{%- else -%}{{- '<end_of_turn>\\n' -}}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}""".replace("CONTENT", _TRIMMED)

#: PaliGemma has no template: all images, then `<bos>`, question and line break, then the answer. Further turns follow in the same way.
PALIGEMMA = """{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- endfor -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}CONTENT{{- eos_token -}}{%- endgeneration -%}
{%- else -%}
CONTENT{{- '\\n' -}}
{%- endif -%}
{%- endfor -%}""".replace("CONTENT", _PARTS.replace("IMAGE", ""))

#: Mistral3, without the system prompt that its own template writes where the row has none.
MISTRAL3 = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}CONTENT{{- eos_token -}}{%- endgeneration -%}
{%- elif message['role'] == 'system' -%}
{{- '[SYSTEM_PROMPT]' -}}CONTENT{{- '[/SYSTEM_PROMPT]' -}}
{%- else -%}
{{- '[INST]' -}}CONTENT{{- '[/INST]' -}}
{%- endif -%}
{%- endfor -%}""".replace("CONTENT", _BARE)

#: Class of the processor → name and text of the template that is used where its own marks no answers.
TEMPLATES = {
    "Qwen2VLProcessor": ("Qwen2-VL", QWEN2_VL),
    "Qwen2_5_VLProcessor": ("Qwen2-VL", QWEN2_VL),
    "Qwen3VLProcessor": ("Qwen3-VL", QWEN3_VL),
    "Idefics3Processor": ("Idefics3", IDEFICS3),
    "SmolVLMProcessor": ("Idefics3", IDEFICS3),
    "InternVLProcessor": ("ChatML", CHATML),
    "Gemma3Processor": ("Gemma 3", GEMMA3),
    "PaliGemmaProcessor": ("PaliGemma", PALIGEMMA),
    "PixtralProcessor": ("Mistral3", MISTRAL3),
}
#: Class of the processor → the token types that its model reads, and what they mark with 1: image tokens, or the first answer and all
#: behind it (before it PaliGemma sees both ways).
TOKEN_TYPES = {
    "Qwen2VLProcessor": ("mm_token_type_ids", "images"),
    "Qwen2_5_VLProcessor": ("mm_token_type_ids", "images"),
    "Qwen3VLProcessor": ("mm_token_type_ids", "images"),
    "Gemma3Processor": ("token_type_ids", "images"),
    "PaliGemmaProcessor": ("token_type_ids", "from the first answer on"),
}
