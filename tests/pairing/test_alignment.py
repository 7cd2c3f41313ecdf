"""Answers that two tokenizers cut differently: which tokens are compared, and which ids mean the same."""

import pytest
from tiny import tiny_tokenizer
from tiny_tokenizers import other_processor, sentencepiece_tokenizer, wordpiece_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from switchkd.data.answer_tokens import AnswerToken, locate
from switchkd.data.chat_format import ChatFormat
from switchkd.data.errors import DataError
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.llava import VICUNA
from switchkd.pairing.alignment import align, match_ids, token_bytes


def tokens(*spans):
    return [AnswerToken(0, *span) if span else None for span in spans]


def test_tokens_that_begin_and_end_together_are_aligned():
    #                 a red circle .      against  a red circ le .
    student = tokens((0, 1), (2, 5), (6, 12), (12, 13), (13, 14))
    teacher = tokens((0, 1), (2, 5), (6, 10), (10, 12), (12, 13), (13, 14))
    assert list(align(student, teacher)) == [(0, 0), (1, 1), (3, 4), (4, 5)]


def test_the_bytes_of_one_character_are_aligned_only_where_both_have_as_many():
    assert list(align(tokens((0, 1), (0, 1), (0, 1)), tokens((0, 1)))) == []
    assert list(align(tokens((0, 1), (0, 1), (1, 2)), tokens((0, 1), (0, 1), (1, 2)))) == [(0, 0), (1, 1), (2, 2)]


def test_answers_are_matched_by_their_index_and_space_by_nothing():
    student = [AnswerToken(0, 0, 3), None, AnswerToken(1, 0, 3)]
    teacher = [None, AnswerToken(1, 0, 3)]
    assert list(align(student, teacher)) == [(2, 1)]


# the answer is "ab cd", with a mark that stands for nothing; positions: U0 :1 space2 a3 b4 mark5 space6 c7 d8 space9 <10
RENDERED = "U: ab\ufdd0 cd <e>"
COVERED = {
    "the space before it is not counted": ((2, 5), (0, 2)),
    "nor the mark": ((6, 9), (3, 5)),
    "a space inside is itself": ((6, 7), (2, 3)),
    "the space behind it is nothing": ((9, 10), None),
    "a token that goes on behind it ends with it": ((7, 10), (3, 5)),
    "text behind it is nothing": ((10, 11), None),
}


@pytest.mark.parametrize(("offset", "expected"), COVERED.values(), ids=COVERED)
def test_a_token_covers_characters_of_the_answer_alone(offset, expected):
    located = locate(RENDERED, offset, answer=1, begin=3, end=9, mark="\ufdd0", closes=False)
    assert located == (None if expected is None else AnswerToken(1, *expected))


def test_the_token_that_closes_an_answer_covers_the_place_behind_it():
    assert locate(RENDERED, (10, 13), answer=1, begin=3, end=9, mark="\ufdd0", closes=True) == AnswerToken(1, 5, 6)


TOKENIZERS = {
    "byte-level": tiny_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "wordpiece": wordpiece_tokenizer,
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_bytes_of_the_tokens_are_the_text(kind):
    """Joined they give the text back, with a space where a word begins."""
    tokenizer = TOKENIZERS[kind]()
    texts = token_bytes(tokenizer)
    sentence = "There are three shapes. Yes: a café"
    ids = tokenizer(sentence, add_special_tokens=False).input_ids
    if kind == "wordpiece":  # é is no piece of it, and a colon has no space before it
        assert b"".join(texts[i] for i in ids[:-1]).decode() == " There are three shapes. Yes: a"
    else:
        assert b"".join(texts[i] for i in ids).decode() == sentence


def test_a_tokenizer_whose_spaces_are_unknown_is_refused():
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(DataError, match=r"decodes by nothing.*Known are ByteLevel, Metaspace and WordPiece"):
        token_bytes(plain)


def closing(tokenizer):
    return tokenizer.eos_token_id


@pytest.mark.parametrize("kind", ["sentencepiece", "wordpiece"])
def test_ids_match_by_what_they_stand_for(kind):
    student, teacher = tiny_tokenizer(), TOKENIZERS[kind]()
    student_ids, teacher_ids = match_ids(student, teacher, (closing(student), closing(teacher)))
    assert student_ids == sorted(set(student_ids))
    assert len(set(teacher_ids)) == len(student_ids)
    pairs = dict(zip(student_ids, teacher_ids, strict=True))
    assert pairs.pop(closing(student)) == closing(teacher)
    image = student.convert_tokens_to_ids("<image>")
    assert pairs.pop(image) == teacher.convert_tokens_to_ids("<image>")
    student_text, teacher_text = token_bytes(student), token_bytes(teacher)
    assert all(student_text[one] == teacher_text[other] for one, other in pairs.items())
    # and nothing that could be matched is left out
    assert {student_text[one] for one in pairs} == set(student_text.values()) & set(teacher_text.values())
    assert b" a" in {student_text[one] for one in pairs}


def test_one_tokenizer_matches_itself_id_by_id():
    tokenizer = tiny_tokenizer()
    student_ids, teacher_ids = match_ids(tokenizer, tiny_tokenizer(), (2, 2))
    assert student_ids == teacher_ids == list(range(len(tokenizer)))


def test_a_written_token_is_preferred_to_its_byte():
    tokenizer = sentencepiece_tokenizer()
    student_ids, _ = match_ids(tokenizer, tiny_tokenizer(), (closing(tokenizer), closing(tiny_tokenizer())))
    assert tokenizer.convert_tokens_to_ids("A") in student_ids
    assert tokenizer.convert_tokens_to_ids("<0x41>") not in student_ids
    assert tokenizer.convert_tokens_to_ids("<0x0A>") in student_ids


MESSAGES = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": " A red <image> circle.\n"}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [CHATML, VICUNA])
def test_tokens_know_what_they_cover_whatever_template_and_tokenizer(kind, template):
    tokenizer = TOKENIZERS[kind]()
    eos = tokenizer.eos_token
    processor = other_processor(tokenizer)
    chat = ChatFormat(processor, template.replace("<|im_end|>", eos))
    tokens = chat.tokenize(MESSAGES, ["<image>" * 9])
    answers = ["A red <image> circle.", "Yes."]
    uncovered = [set(range(len(answer) + 1)) for answer in answers]
    for index, answer, place in zip(tokens.input_ids, tokens.is_answer, tokens.covers, strict=True):
        if place is None:
            continue
        assert answer
        text = answers[place.answer]
        if place.start == len(text):
            assert index == tokenizer.eos_token_id
        else:
            assert text[place.start : place.end].strip() == tokenizer.decode([index]).strip().removeprefix("##")
        uncovered[place.answer] -= set(range(place.start, place.end))
    # all of each answer, and its end, is covered; but for spaces, which belong to the words behind them
    assert [[text[place : place + 1] for place in places] for text, places in zip(answers, uncovered, strict=True)] == [
        [" "] * len(places) for places in uncovered
    ]
    assert all(len(places) <= 3 for places in uncovered)
