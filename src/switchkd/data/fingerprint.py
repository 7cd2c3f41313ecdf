"""What tells a processor, with its template and limits, from every other: the index of rows is kept by it."""

import json
from hashlib import blake2b
from typing import Any

import transformers
from transformers import ProcessorMixin


def reading_parts(processor: ProcessorMixin, template: str, **limits: int | str) -> dict[str, Any]:
    """All that the tokens and pixels of a row depend on, by name.

    Args:
        processor: with a fast tokenizer.
        template: the chat template in use, which need not be the processor's own.
        limits: such as `max_length`, `max_pixels` and which frames of videos are seen.
    """
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    for left_by_last_call in ("padding", "truncation"):
        tokenizer.pop(left_by_last_call)
    return {
        "library": transformers.__version__,
        "class": type(processor).__name__,
        "settings": processor.to_dict(),
        "tokenizer": tokenizer,
        "special tokens": processor.tokenizer.special_tokens_map,
        "template": template,
        "limits": limits,
    }


def digest_of(parts: Any, size: int = 16) -> str:
    """Changes with any of these parts.

    Raises:
        TypeError: a setting of a processor that cannot be written as JSON.
    """
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=size).hexdigest()
