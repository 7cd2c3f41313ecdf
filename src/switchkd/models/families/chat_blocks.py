"""What several families' chat templates are made of. `<image>` stands for the processor's image token."""


def content(image: str, *, trimmed: bool = False) -> str:
    """The text of a message, with `image` in the place of each image."""
    trim = " | trim" if trimmed else ""
    return f"""{{%- if message['content'] is string -%}}{{{{ message['content']{trim} }}}}{{%- else -%}}
{{%- for part in message['content'] -%}}
{{%- if part['type'] == 'image' -%}}{{{{ '{image}' }}}}{{%- else -%}}{{{{ part['text']{trim} }}}}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}"""


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
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}""".replace(
    "CONTENT", content("<image>\\n")
)
