"""Two tokenizers, one answer: which of their tokens cover the same text, and which of their ids mean the same.

Pure functions. A token of an answer is known by the characters that it covers, so neither the chat template nor the number of visual
tokens before it matters.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from switchkd.data.answer_tokens import AnswerToken
from switchkd.data.chat_format import ChatFormat
from switchkd.data.errors import DataError

#: The sign that SentencePiece writes for the space before a word.
_WORD_START = "\u2581"
#: One of two models.
Side = Literal["student", "teacher"]
#: Answers of one word; a tokenizer of few words should know one of them.
_WORDS = ("Yes", "yes", "A", "a", "No", "no", "1")


def align(student: Sequence[AnswerToken | None], teacher: Sequence[AnswerToken | None]) -> Iterator[tuple[int, int]]:
    """Indices of the tokens that begin and end together, in order.

    Several tokens with one span are the bytes of one character; they are paired where both sides have equally many.
    """
    spans: list[dict[AnswerToken, list[int]]] = []
    for tokens in (student, teacher):
        by_span: dict[AnswerToken, list[int]] = defaultdict(list)
        for index, token in enumerate(tokens):
            if token is not None:
                by_span[token].append(index)
        spans.append(by_span)
    for token, indices in sorted(spans[0].items()):
        others = spans[1].get(token, [])
        if len(indices) == len(others):
            yield from zip(indices, others, strict=True)


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """Every ordinary id of a fast tokenizer and the bytes that it stands for, the space before a word included.

    Raises:
        DataError: for a tokenizer that marks spaces in no way known here.
    """
    rules = list(_decoders(tokenizer.backend_tokenizer.decoder))
    kinds = {rule["type"] for rule in rules}
    special = tokenizer.added_tokens_decoder
    vocabulary = {index: token for token, index in tokenizer.get_vocab().items() if index not in special}
    if "ByteLevel" in kinds:
        byte = {character: value for value, character in _byte_characters().items()}
        return {
            index: bytes(byte[c] for c in token) for index, token in vocabulary.items() if set(token) <= byte.keys()
        }
    if "WordPiece" in kinds:
        prefix = next(rule["prefix"] for rule in rules if rule["type"] == "WordPiece")
        return {
            # a word begins after a space, punctuation does not
            index: (
                token.removeprefix(prefix) if token.startswith(prefix) else f" {token}" if token[0].isalnum() else token
            ).encode()
            for index, token in vocabulary.items()
        }
    if "Metaspace" in kinds or any(rule.get("pattern") == {"String": _WORD_START} for rule in rules):
        return {
            index: bytes([int(token[3:5], 16)]) if _is_byte(token) else token.replace(_WORD_START, " ").encode()
            for index, token in vocabulary.items()
        }
    raise DataError(
        f"{type(tokenizer).__name__} decodes by {', '.join(sorted(kinds)) or 'nothing'}: how it marks the space before a word is not "
        "known, so its tokens cannot be matched with another tokenizer's. Known are ByteLevel, Metaspace and WordPiece"
    )


def match_ids(
    student: Any, teacher: Any, closing: tuple[int, int], *, spaced: Side | None = None
) -> tuple[list[int], list[int]]:
    """The ids of two tokenizers that stand for the same text, pairwise, in the order of the student's.

    Special tokens match where they are written alike; the tokens that close an answer, `closing`, match whatever they are called.

    Args:
        student: its tokenizer.
        teacher: the other's.
        closing: the ids of the tokens that close an answer.
        spaced: whose tokens have a space before the text that the other's have not: "Cat" of the one matches " Cat" of this one. None
            where both have the space or neither.

    Raises:
        DataError: for a tokenizer whose marks are not known.
    """
    if spaced is None and student.get_vocab() == teacher.get_vocab():
        ids = list(range(len(student)))
        return ids, ids
    texts = _by_text(student), _by_text(teacher)
    if spaced is None:
        pairs = dict(_common(*texts))
    elif spaced == "teacher":
        pairs = dict(_common({b" " + text: index for text, index in texts[0].items()}, texts[1]))
    else:
        pairs = dict(_common(texts[0], {b" " + text: index for text, index in texts[1].items()}))
    special = [{t.content: index for index, t in tokens.added_tokens_decoder.items()} for tokens in (student, teacher)]
    pairs |= dict(_common(*special))
    pairs = {first: second for first, second in pairs.items() if first != closing[0] and second != closing[1]}
    pairs[closing[0]] = closing[1]
    student_ids = sorted(pairs)
    return student_ids, [pairs[index] for index in student_ids]


def spaced_side(student: ChatFormat, teacher: ChatFormat) -> Side | None:
    """Whose first token of an answer has the space before its word, where the other's has none; None where both do the same.

    A template writes that space (Vicuna's `ASSISTANT: Cat`), or a tokenizer puts it before every text.

    Raises:
        DataError: for a tokenizer whose marks are not known.
    """
    carries = [_carries_space(chat) for chat in (student, teacher)]
    return None if carries[0] == carries[1] else "student" if carries[0] else "teacher"


def _carries_space(chat: ChatFormat) -> bool:
    question = {"role": "user", "content": [{"type": "text", "text": "What is it?"}]}
    texts: dict[int, bytes] | None = None
    for word in _WORDS:
        tokens = chat.tokenize([question, {"role": "assistant", "content": [{"type": "text", "text": word}]}], [])
        first = [
            index
            for index, cover in zip(tokens.input_ids, tokens.covers, strict=True)
            if cover is not None and cover.start == 0
        ]
        texts = token_bytes(chat.tokenizer) if texts is None else texts
        if first and texts.get(first[0], b"").startswith(b" "):
            return True
    return False


def _by_text(tokenizer: Any) -> dict[bytes, int]:
    """Bytes → id; a token that is written out is preferred to one that only stands for its byte."""
    names = tokenizer.get_vocab()
    single = {index for token, index in names.items() if _is_byte(token)}
    texts = token_bytes(tokenizer)
    ordered = sorted(texts, key=lambda index: (index not in single, -index))
    return {texts[index]: index for index in ordered}


def _common(student: dict[Any, int], teacher: dict[Any, int]) -> Iterable[tuple[int, int]]:
    return ((index, teacher[text]) for text, index in student.items() if text in teacher)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _decoders(decoder: Any) -> Iterator[dict[str, Any]]:
    """The steps by which a tokenizer turns tokens into text."""
    rule = {} if decoder is None else json.loads(decoder.__getstate__())
    yield from rule.get("decoders", [rule] if rule else [])


def _byte_characters() -> dict[int, str]:
    """The printable character that byte-level tokenizers write for each byte (GPT-2): itself where it is one."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + n) for n, value in enumerate(others)}
