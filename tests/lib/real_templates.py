"""The public chat templates in `SWITCHKD_REAL/templates`, each on a tiny tokenizer with the special tokens that it writes."""

import copy
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from tiny import tiny_tokenizer
from transformers import LlavaProcessor, SiglipImageProcessorPil

from switchkd.data.template_choice import choose_format

_TOKEN = re.compile(r"<[|｜][^<>'\"{}]*?[|｜]?>|<[\w▁/|]+[|]?>|\[/?[A-Z_]{3,}\]|\[gMASK\]")
#: What templates write for an image, the most special name first.
_IMAGES = ["<|image_pad|>", "<|IMAGE|>", "<|image|>", "<start_of_image>", "[IMG]", "<image>"]
#: Written by templates and not special: text that a model says.
_TEXT = re.compile(r"</?(think|tool_call|tool_response|response|tools|arg_key|arg_value|function|parameter)>?")
_BOS = ["<bos>", "<s>", "<|begin_of_text|>"]


@cache
def _tokenizer() -> Any:
    return tiny_tokenizer()


def template_files() -> list[Path]:
    """All of them; none where the variable is not set."""
    folder = os.environ.get("SWITCHKD_REAL")
    return sorted(Path(folder, "templates").glob("*.jinja")) if folder else []


def processor_with(template: str, *, bos: str = "<s>", eos: str = "</s>") -> Any:
    """A LLaVA processor whose tokenizer knows what `template` writes."""
    image = next((token for token in _IMAGES if token in template), "<image>")
    tokens = dict.fromkeys(token for token in _TOKEN.findall(template) if not _TEXT.match(token))
    tokenizer = copy.deepcopy(_tokenizer())
    tokenizer.add_special_tokens({"bos_token": bos, "eos_token": eos, "additional_special_tokens": [*tokens, image]})
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=template,
        image_token=image,
    )


def table() -> str:
    """What of each template is asked, learned and refused, as docs/families.md shows it."""
    lines = [
        '| template | read | asks for an answer by | what is learned of "Yes." | not written |',
        "|---|---|---|---|---|",
    ]
    for file in template_files():
        own = file.read_text()
        chat = choose_format(processor_with(own))
        messages: list[Any] = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", "Sure?"), ("assistant", "Yes."))
        ]
        asked = chat.tokenize(messages[:1], [], generation_prompt=True).input_ids
        learned = chat.tokenize(messages, [])
        answer = [index for index, is_answer in zip(learned.input_ids, learned.is_answer, strict=True) if is_answer]
        how = "as it is" if chat.template == own else "given texts"
        behind = chat.tokenizer.decode(asked).rpartition("Sure?")[2]
        refused = "; ".join(f"{probe}: {reason}" for probe, reason in chat.refused.items())
        said = chat.tokenizer.decode(answer)
        end = "" if chat.closing else " (it writes no end)"
        lines.append(f"| {file.stem} | {how} | {_code(behind)} | {_code(said)}{end} | {refused} |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return "`" + repr(text)[1:-1].replace("|", "\\|") + "`"
