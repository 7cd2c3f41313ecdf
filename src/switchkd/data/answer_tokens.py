"""Which tokens are answers, and which characters of one each covers: by that, tokens of two tokenizers can be told to be the same."""

from typing import NamedTuple

from switchkd.data.answer_spans import Rendering, Span


class AnswerToken(NamedTuple):
    """The characters `start:end` of the answer with this index, without the space around them.

    Counted in the answer's text, stripped. The token that closes an answer of n characters covers `n:n+1`.
    """

    answer: int
    start: int
    end: int


def locate(
    text: str, offset: tuple[int, int], *, answer: int, begin: int, end: int, mark: str, closes: bool
) -> AnswerToken | None:
    """What a token covers of the answer that stands in `text[begin:end]`; None where it covers nothing of it.

    Args:
        text: the rendered conversation.
        offset: first character of the token and the one after its last.
        answer: index of the answer.
        begin: first character of the answer, no space.
        end: the character after its last.
        mark: a character that stands in `text` and not in the answer.
        closes: whether the token is a special one, which closes the answer where it stands behind it.
    """

    def place(position: int) -> int:
        return position - begin - text.count(mark, begin, position)

    first, last = offset
    if first >= end:
        return AnswerToken(answer, place(end), place(end) + 1) if closes else None
    first, last = max(first, begin), min(last, end)
    covered = text[first:last]
    if word := covered.strip():
        first += len(covered) - len(covered.lstrip())
        last = first + len(word)
    return AnswerToken(answer, place(first), place(last)) if first < last else None


def answer_mask(text: str, spans: list[Span], offsets: list[tuple[int, int]]) -> list[bool]:
    """Tokens of answers. One that begins before its answer belongs to it where it has a word of it, and nothing but space of the rest."""
    mask = [False] * len(offsets)
    begin = 0
    for start, end, _ in spans:
        while begin < len(offsets) and offsets[begin][1] < start:  # both go forward through the text
            begin += 1
        for index in range(begin, len(offsets)):
            first, last = offsets[index]
            if first > end:
                break
            if first == last:  # tokenizers that trim offsets give a token of spaces no width: it lies where it ends
                mask[index] |= start < last <= end
            elif first < end and last > start:
                word = first >= start or bool(text[start:last].strip())
                mask[index] |= word and not text[first:start].strip()
    return mask


def answer_covers(
    found: Rendering, mark: str, offsets: list[tuple[int, int]], is_answer: list[bool], special: list[bool]
) -> list[AnswerToken | None]:
    """For each token what it covers of its answer; nothing where the template rewrites an answer."""
    covers: list[AnswerToken | None] = [None] * len(offsets)
    token = 0
    for number, (start, end, place) in enumerate(found.spans):
        if place is None or not (core := found.text[slice(*place)].strip()):
            continue
        begin = found.text.index(core, *place)
        while token < len(offsets) and offsets[token][1] < start:  # both go forward through the text
            token += 1
        near = range(token, next((i for i in range(token, len(offsets)) if offsets[i][0] >= end), len(offsets)))
        inside = [i for i in near if is_answer[i] and offsets[i][1] > start]
        for index in inside:
            closes = special[index] and index == inside[-1]
            covers[index] = locate(
                found.text, offsets[index], answer=number, begin=begin, end=begin + len(core), mark=mark, closes=closes
            )
    return covers
