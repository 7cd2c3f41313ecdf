"""What several families' chat templates are made of. `<image>` stands for the processor's image token, `<video>` for its video token."""

import json

_OTHER_PART = """{{- raise_exception("a message has a part of type '" ~ part['type'] ~ "': this template writes text and images") -}}"""


def content(image: str, *, trimmed: bool = False, videos: bool = False) -> str:
    """The text of a message, with `image` in the place of each image; with `videos`, the same of each video."""
    trim = " | trim" if trimmed else ""
    video = f"{{%- elif part['type'] == 'video' -%}}{{{{ '{image.replace('<image>', '<video>')}' }}}}" if videos else ""
    return f"""{{%- if message['content'] is string -%}}{{{{ message['content']{trim} }}}}{{%- else -%}}
{{%- for part in message['content'] -%}}{{%- if part['type'] == 'image' -%}}{{{{ '{image}' }}}}
{{%- elif part['type'] == 'text' -%}}{{{{ part['text']{trim} }}}}{video}{{%- else -%}}{_OTHER_PART}{{%- endif -%}}
{{%- endfor -%}}
{{%- endif -%}}"""


def _chatml(content: str) -> str:
    return """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
CONTENT{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}""".replace("CONTENT", content)


#: ChatML, for LLaVA with a Qwen2 language model; and for models that read videos, such as InternVL.
CHATML = _chatml(content("<image>\\n"))
CHATML_WITH_VIDEOS = _chatml(content("<image>\\n", videos=True))


def as_text(image: str | None) -> str:
    """What stands before a template that takes the contents of messages as texts alone, and makes texts of them.

    Args:
        image: what is written for an image; None: messages with images stay as they are.
    """
    left = "" if image is not None else " or message['content'] | selectattr('type', 'equalto', 'image') | list"
    return (
        """{%- set written = namespace(messages=[], text='') -%}
{%- for message in messages -%}
{%- if message['content'] is string or message['content'] is not iterableLEFT -%}
{%- set written.messages = written.messages + [message] -%}
{%- else -%}
{%- set written.text = '' -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set written.text = written.text + IMAGE -%}
{%- elif part['type'] == 'text' -%}{%- set written.text = written.text + part['text'] -%}
{%- else -%}OTHER{%- endif -%}
{%- endfor -%}
{%- set written.messages = written.messages + [dict(message, content=written.text)] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = written.messages %}
""".replace("LEFT", left)
        .replace("OTHER", _OTHER_PART)
        .replace("IMAGE", json.dumps(image or ""))
    )
