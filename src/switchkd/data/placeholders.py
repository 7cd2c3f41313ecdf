"""What stands in a rendered conversation for the pictures and videos of a row."""

import re
from typing import Any

from switchkd.data.answer_spans import Rendering, Span
from switchkd.data.errors import SampleError
from switchkd.models.families import family_of_processor
from switchkd.names import Kind


def no_videos(processor: Any) -> str | None:
    """Why a processor reads no videos; None for one that does."""
    family, name = family_of_processor(processor), type(processor).__name__
    if family is None or family.video_inputs is None:
        return f"{name} reads none: leave the row out, or give some frames as images"
    if getattr(processor, "video_processor", None) is None:
        return f"{name} has no video processor: load it where torchvision is installed, from a folder with video_preprocessor_config.json"
    token, added = getattr(processor, "video_token", None), processor.tokenizer.added_tokens_decoder.values()
    if family.video_inputs and token not in [one.content for one in added]:
        return f"{name}: its video token {token!a} is no added token of its tokenizer"
    return None


def expand(found: Rendering, written: dict[Kind, tuple[str | None, list[str]]]) -> tuple[Rendering, int, Kind]:
    """Write the placeholders in the text and move all places along; also where the last placeholder ends, and what it is.

    `written`: of images and of videos, what the template writes for one, and what stands in its place for each.
    """
    kinds = {token: kind for kind, (token, _) in written.items() if token is not None}
    pattern = "|".join(map(re.escape, sorted(kinds, key=len, reverse=True)))
    marks = list(re.finditer(pattern, found.text))
    for token, kind in kinds.items():
        count, wanted = sum(mark[0] == token for mark in marks), len(written[kind][1])
        if count != wanted:
            raise SampleError(f"the rendered conversation has {count} {kind} marks for {wanted} {kind}s")
    left = {token: iter(written[kind][1]) for token, kind in kinds.items()}
    placeholders = [next(left[mark[0]]) for mark in marks]
    gained = [len(placeholder) - len(mark[0]) for placeholder, mark in zip(placeholders, marks, strict=True)]

    def moved(position: int) -> int:
        return position + sum(gain for gain, mark in zip(gained, marks, strict=True) if mark.end() <= position)

    in_order = iter(placeholders)
    expanded = re.sub(pattern, lambda mark: next(in_order), found.text)
    spans = [
        Span(moved(span.start), moved(span.end), span.text and (moved(span.text[0]), moved(span.text[1])))
        for span in found.spans
    ]
    end, last = (moved(marks[-1].end()), kinds[marks[-1][0]]) if marks else (0, next(iter(written)))
    return Rendering(expanded, moved(found.prompt), spans), end, last
