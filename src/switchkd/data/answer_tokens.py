"""Which characters of an answer a token covers: by that, tokens of two tokenizers can be told to be the same."""

from typing import NamedTuple


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
