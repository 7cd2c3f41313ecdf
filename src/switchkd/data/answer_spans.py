"""Where the answers are in a chat template's own rendering of a conversation.

A template is only ever rendered, never read. What asks for an answer is the rendering of the messages before it, with
`add_generation_prompt`; the last answer begins there, and earlier ones behind what asks for the last. Its text is found by rendering
the conversation once more with a character that no text holds in its place, and it is closed by the same token that closes an answer
of the template's.
"""

import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from switchkd.data.errors import DataError, SampleError

Message = dict[str, Any]
#: Messages, and whether an answer to them is asked for → text.
Render = Callable[[list[Message], bool], str]

#: Around a thought that is written into an answer.
_THOUGHT = re.compile(r"</?think(?:ing)?>")


class Span(NamedTuple):
    """One answer in a rendered conversation, in characters."""

    #: Where what asks for it ends: all from here to `end` is what the model has to say.
    start: int
    #: Behind the token that closes it.
    end: int
    #: Where its own text begins and ends; None where it has none, or where the template rewrites it.
    text: tuple[int, int] | None


class Rendering(NamedTuple):
    """A conversation as a template writes it. It begins with what asks for the last answer: `text[:prompt]`."""

    text: str
    prompt: int
    spans: list[Span]


def find_asked(render: Render, messages: list[Message], hole: str, closing: str | None) -> Rendering:
    """What asks for an answer to `messages`, and the answers that it holds.

    Args:
        render: the template.
        messages: with typed special tokens broken.
        hole: a character that the messages do not hold.
        closing: what the template writes behind an answer to close it; None where it writes nothing.

    Raises:
        DataError: if the template does not write an answer once, as it is.
    """
    text = render(messages, True)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return Rendering(text, len(text), [])
    places: Sequence[Place] = _places(render, messages, turns, text, hole) or _places_one_by_one(
        render, messages, turns, text, hole
    )
    header = _header(text, render(messages, False))
    spans: list[Span] = []
    for number, (turn, place) in enumerate(zip(turns, places, strict=True)):
        before = spans[-1].end if spans else 0
        if place is None or place[0] is None:
            start = _asked_length(render, messages[:turn], text)
        else:
            found = text.rfind(header, before, place[0]) if header else -1
            start = place[0] if found < 0 else found + len(header)
        end = place[1] if place else start
        following = places[number + 1] if number + 1 < len(places) else None
        limit = following[0] if following and following[0] is not None else len(text)
        closed = -1 if closing is None else text.find(closing, end, limit)
        spans.append(Span(start, end if closed < 0 else closed + len(closing or ""), _known(place)))
    return Rendering(text, len(text), spans)


def find_answered(render: Render, messages: list[Message], hole: str, closing: str | None, ending: str) -> Rendering:
    """A conversation that is learned: what asks for its last answer, that answer, and all behind it.

    Where the template itself writes the beginning of the conversation in another way than it asks for the answer, it is written as
    it is asked. Where the template writes nothing to close an answer, `ending` closes the last one. Arguments and errors are those
    of `find_asked`, and SampleError where the template leaves out something of the last answer.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        return Rendering(render(messages, False), 0, [])
    whole, last = render(messages, False), turns[-1]
    asked = find_asked(render, messages[:last], hole, closing)
    place = _place(render, messages, last, whole, hole, asked=False)
    begin = len(asked.text)
    if not whole.startswith(asked.text):
        if place is None or place[0] is None:
            raise DataError(
                f"the chat template asks for an answer by …{asked.text[-60:]!r}, and writes a conversation with it as …{whole[-120:]!r}, "
                "which does not begin so"
            )
        begin = place[0]
    _check_whole(messages[last], whole[begin:])
    moved = len(asked.text) - begin
    text, end = asked.text + whole[begin:], (place[1] if place else begin) + moved
    if closing is not None:
        end = text.find(closing, end) + len(closing)
        if end < len(closing):
            raise DataError(f"the chat template does not close the last answer with {closing!r}")
    elif last == len(messages) - 1:
        text = text.rstrip() + ending
        end = len(text)
    known = _known(place)
    span = Span(len(asked.text), end, known and (known[0] + moved, known[1] + moved))
    return Rendering(text, len(asked.text), [*asked.spans, span])


def _check_whole(answer: Message, written: str) -> None:
    """Of an answer nothing may be lost but white space and what is around its thoughts, which templates move."""
    squeezed, at = "".join(written.split()), 0
    for said in _THOUGHT.split("".join(part.get("text") or "" for part in answer["content"])):
        piece = "".join(said.split())
        at = squeezed.find(piece, at)
        if at < 0:
            raise SampleError(
                f"the chat template leaves {said.strip()[:60]!r} of its last answer out, so it would be lost: choose a checkpoint whose "
                "template writes what was thought, or leave it out of the answer"
            )
        at += len(piece)


def holds_text(message: Message) -> bool:
    """Whether a message says something: a call of a tool need not."""
    return any(part.get("text") for part in message["content"])


Place = tuple[int | None, int] | None


def _places(
    render: Render, messages: list[Message], turns: list[int], text: str, hole: str
) -> list[tuple[int, int]] | None:
    """Where the texts of all answers are, from one rendering with holes; None where the template does more than to write and strip them."""
    if not all(holds_text(messages[turn]) for turn in turns):
        return None
    holed = [_holed(message, hole) if message["role"] == "assistant" else message for message in messages]
    first, *rest = render(holed, True).split(hole)
    if len(rest) != len(turns) or not text.startswith(first):
        return None
    places, at = [], len(first)
    for turn, behind in zip(turns, rest, strict=True):
        begin, said = at, "".join(part.get("text", "") for part in messages[turn]["content"]).strip()
        at = text.find(said, at)
        if at < 0 or text[begin:at].strip():
            return None
        at += len(said)
        while not text.startswith(behind, at):
            if not text[at : at + 1].isspace():
                return None
            at += 1
        places.append((begin, at))
        at += len(behind)
    return places if at == len(text) else None


def _places_one_by_one(render: Render, messages: list[Message], turns: list[int], text: str, hole: str) -> list[Place]:
    """The same, one answer after the other: whatever the template makes of one, the others are as they are."""
    return [_place(render, messages, turn, text, hole, asked=True) for turn in turns]


def _place(render: Render, messages: list[Message], turn: int, text: str, hole: str, *, asked: bool) -> Place:
    """Where in `text` the text of one message begins and ends; None as beginning where the template rewrites it."""
    if not holds_text(messages[turn]):
        return None
    holed = [*messages[:turn], _holed(messages[turn], hole), *messages[turn + 1 :]]
    before, *rest = render(holed, asked).split(hole)
    if len(rest) != 1:
        raise DataError(f"the chat template writes message {turn + 1}, an answer, {len(rest)} times")
    end = len(text) - len(rest[0])
    if not text.endswith(rest[0]):
        raise DataError(f"the chat template writes what follows message {turn + 1} in another way for another answer")
    return (len(before) if text.startswith(before) and len(before) <= end else None), end


def _holed(message: Message, hole: str) -> Message:
    return {**message, "content": [{"type": "text", "text": hole}]}


def _header(asked: str, unasked: str) -> str:
    """What the template writes to ask for an answer, behind the messages."""
    if asked.startswith(unasked):
        return asked[len(unasked) :]
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, unasked, strict=False)))
    return asked[common:]


def _asked_length(render: Render, messages: list[Message], text: str) -> int:
    prompt = render(messages, True)
    if not text.startswith(prompt):
        raise DataError(f"the chat template writes message {len(messages) + 1} in another way than it asks for it")
    return len(prompt)


def _known(place: Place) -> tuple[int, int] | None:
    return None if place is None or place[0] is None else (place[0], place[1])
