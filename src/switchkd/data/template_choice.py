"""Which chat template a processor is used with: its own wherever it can be used, else one of ours, or the one that a recipe names."""

import logging
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin

from switchkd.data.chat_format import NEEDED, PROBES, ChatFormat
from switchkd.data.errors import DataError
from switchkd.models.families import Family, family_of_processor
from switchkd.models.families.chat_blocks import as_text
from switchkd.models.families.llava import VICUNA

logger = logging.getLogger(__name__)


def choose_format(processor: ProcessorMixin, template: str = "own") -> ChatFormat:
    """The chat format to train and ask with: the processor's own template; its family's only where it has none or it cannot be used.

    `use_format` puts the one in use into the processor, so that a student that is saved with it is asked as it was trained.

    Args:
        processor: the model's.
        template: `own`; or `llava`, that of LLaVA 1.5; or a file.

    Raises:
        DataError: if the template cannot be used, with what to do.
    """
    known = ChatFormat(processor, "")
    if template != "own":
        name, text = (
            ("LLaVA (vicuna)", VICUNA.replace("<image>", known.image_token))
            if template == "llava"
            else (template, _read(template))
        )
        chosen, problem = _usable(processor, text, name, "data.template names it")
        if chosen is None:
            raise DataError(f"data.template is {template}, and it cannot be used: {problem}")
        return chosen
    own = getattr(processor, "chat_template", None) or known.tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    problem = "it has none"
    if own is not None:
        chosen, problem = _usable(processor, own, "own", None)
        if chosen is not None:
            return chosen
    family = family_of_processor(processor)
    added = {token.content for token in known.tokenizer.added_tokens_decoder.values()}
    ours = None if family is None else family.choose_template(own, added)
    if ours is None:
        raise DataError(
            f"the processor's chat template cannot be used ({problem}) and none of ours fits it; give a template that can with "
            "data.template: FILE"
        )
    name, text = ours
    chosen, reason = _usable(processor, _written(text, known), name, problem)
    if chosen is None:
        raise DataError(
            f"the processor's chat template cannot be used ({problem}), and neither can ours, {name}: {reason}"
        )
    if own is not None:
        chosen.problem = f"{problem}; {_first_difference(processor, own, chosen)}"
    _warn_once(f"using the {name} chat template of switchkd in place of the processor's own ({chosen.problem})")
    return chosen


def _written(template: str, known: ChatFormat) -> str:
    """A template of this package, with the processor's own tokens."""
    with_images = template.replace("<image>", known.image_token)
    return with_images if known.video_token is None else with_images.replace("<video>", known.video_token)


def use_format(processor: ProcessorMixin, chat: ChatFormat) -> None:
    """Make the template in use the processor's own, as it is saved; templates that it has by other names stay."""
    own: Any = getattr(processor, "chat_template", None)
    processor.chat_template = {**own, "default": chat.saved} if isinstance(own, dict) else chat.saved


def _usable(processor: ProcessorMixin, template: str, name: str, problem: str | None) -> tuple[ChatFormat | None, str]:
    """The template as it is, or behind a preamble that makes texts of contents: by what can be done with most of the probes.

    None, and why it cannot be used, where neither can do what is needed.
    """
    family = family_of_processor(processor) or Family
    image = family.image_text.replace("<image>", str(getattr(processor, "image_token", "")))
    candidates = [
        ChatFormat(processor, t + template, name=name, problem=problem) for t in ("", as_text(None), as_text(image))
    ]
    best = None
    for candidate in candidates:
        candidate.refused = candidate.refusals()
        if candidate.refused.keys().isdisjoint(NEEDED) and (best is None or len(candidate.refused) < len(best.refused)):
            best = candidate
        if best is not None and not best.refused:
            break
    return best, next(iter(candidates[0].refused.values()), "")


def _first_difference(processor: ProcessorMixin, own: str, chosen: ChatFormat) -> str:
    """Where ours differs first from the processor's own template, on the first probe."""
    messages = PROBES["text"]
    ids = []
    for template in (own, as_text("") + own):
        try:
            ids.append(chosen.tokenizer(ChatFormat(processor, template).render(messages, False)).input_ids)
        except DataError:
            continue
    if not ids:
        return "it writes nothing that could be compared"
    pairs = list(zip_longest(chosen.tokenize(messages, []).input_ids, ids[-1]))
    place = next((place for place, (first, second) in enumerate(pairs) if first != second), None)
    if place is None:
        return "without images, both write the same"
    first, second = (
        "nothing" if index is None else f"{chosen.tokenizer.decode([index])!r} ({index})" for index in pairs[place]
    )
    return f"the first token that differs is number {place + 1}, {first} where its own has {second}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.template is neither own nor llava, and no file that can be read: {path}: {error}"
        ) from None


@lru_cache
def _warn_once(message: str) -> None:
    logger.warning(message)
