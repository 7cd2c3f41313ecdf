"""What a reader makes of texts and turns that are not as every row's: words it does not know, turns not to be learned, very long ones."""

import logging
import sys

import pytest
from tiny import tiny_processor
from tiny_tokenizers import other_processor, wordpiece_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from switchkd.data import reader as reading
from switchkd.data.errors import DataError, SampleError
from switchkd.data.reader import Reader
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.llava import VICUNA

KNOWN = ["user", "assistant", "system", "\n", "red", "blue", "What", "is", "it", "?", ".", ":", "USER", "ASSISTANT"]


def word_tokenizer(unknown="<unk>"):
    """One word, one token; as that of the demonstration's world."""
    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
    vocabulary = {word: number for number, word in enumerate(special + KNOWN)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", unk_token=unknown, pad_token="<|endoftext|>"
    )


def character_tokenizer():
    """One character, one token, as SentencePiece without bytes; what it lacks is one unknown token for all in a row."""
    special = ["<unk>", "</s>", "<|im_start|>", "<|im_end|>", "<image>"]
    words = ["▁", "\n", *map(chr, range(33, 127))]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(special + words)}, [], unk_token="<unk>", fuse_unk=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", unk_token="<unk>", pad_token="</s>"
    )


def reader_with(tokenizer, **limits):
    template = CHATML if "<|im_end|>" in tokenizer.get_vocab() else VICUNA
    return Reader(other_processor(tokenizer, chat_template=template), **limits)


def row(*turns, **of_answers):
    """Turns alternate, the user begins. `of_answers`: what each answer carries besides, by name."""
    messages = []
    for number, text in enumerate(turns):
        role = "assistant" if number % 2 else "user"
        more = {name: values[number // 2] for name, values in of_answers.items()} if number % 2 else {}
        messages.append({"role": role, "content": [{"type": "text", "text": text}], **more})
    return {"id": "r", "images": [], "messages": messages, "kinds": [], "problem": None}


def learned_text(reader, encoded):
    return reader.processor.tokenizer.decode([encoded.tokens[place] for place in encoded.answers])


UNKNOWN = {
    "a word": (word_tokenizer, "everything", "red . <|im_end|>"),
    "an emoji of a word tokenizer": (word_tokenizer, "🐈", "red . <|im_end|>"),
    "an emoji of a character tokenizer": (character_tokenizer, "🐈", "red."),
    "characters in a row": (character_tokenizer, "猫犬", "red."),
    "an emoji of a wordpiece tokenizer": (wordpiece_tokenizer, "🐈", "red."),
}


@pytest.mark.parametrize(("tokenizer", "word", "answer"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_characters_are_text_and_no_control_tokens(tokenizer, word, answer, caplog):
    reading._named_unknown.clear()
    reader = reader_with(tokenizer())
    with caplog.at_level(logging.WARNING):
        asked = reader.encode(row(f"What is {word} ?", "red ."))
        prompt = reader.prompts([row(f"What is {word} ?")])
    assert asked.tokens.count(reader.processor.tokenizer.unk_token_id) >= 1
    assert prompt["input_ids"].tolist()[0] == asked.tokens[: asked.answers[0]]
    assert caplog.text.count("does not know") == 1
    assert ascii(word) in caplog.text


@pytest.mark.parametrize(("tokenizer", "word", "answer"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_characters_in_an_answer_are_not_learned_and_the_rest_is(tokenizer, word, answer):
    reader = reader_with(tokenizer())
    unknown, closing = reader.processor.tokenizer.unk_token_id, reader.format.closing_id
    plain, encoded = (reader.encode(row("What ?", answer)) for answer in ("red .", f"red {word} ."))
    assert encoded.tokens.count(unknown) - plain.tokens.count(unknown) == 1
    learned = [encoded.tokens[place] for place in encoded.answers]
    assert unknown not in learned
    assert learned[-1] == closing
    with pytest.raises(
        SampleError, match=f"'r': the tokenizer does not know .*{ascii(word)[1:-1]}".replace("\\", "\\\\")
    ):
        reader.encode(row("What ?", word))


def test_an_unknown_token_that_closes_answers_too_is_refused():
    tokenizer = word_tokenizer("<|im_end|>")
    with pytest.raises(DataError, match=r"reads characters that it does not know as <\|im_end\|>, which .* writes too"):
        reader_with(tokenizer).encode(row("everything ?", "red ."))


def test_only_turns_that_are_to_be_learned_are_answers():
    reader = Reader(tiny_processor())
    turns = ("A?", "Yes.", "B?", "No.", "C?", "Three.")
    whole = reader.encode(row(*turns))
    for learned, text in (
        ([False, True, None], "No.<|im_end|>Three.<|im_end|>"),
        ([True, False, False], "Yes.<|im_end|>"),
    ):
        encoded = reader.encode(row(*turns, learned=learned))
        assert encoded.tokens == whole.tokens
        assert learned_text(reader, encoded) == text
        assert {cover.answer for cover in encoded.covers if cover} == {
            n for n, flag in enumerate(learned) if flag is not False
        }
    with pytest.raises(SampleError, match="all its answers are marked as not to be learned"):
        reader.encode(row(*turns, learned=[False] * 3))


SHOWS = CHATML.replace(
    "message['role'] + '\\n' -}}",
    "message['role'] + '\\n' -}}{%- if message.reasoning_content -%}<think>{{ message.reasoning_content }}</think>{%- endif -%}",
    1,
)


def test_reasoning_is_learned_where_the_template_shows_it():
    assert SHOWS != CHATML
    reader = Reader(tiny_processor(SHOWS))
    encoded = reader.encode(row("A?", "Yes.", reasoning=["It says Yes. <|im_end|>"]))
    assert learned_text(reader, encoded) == "<think>It says Yes. <|im_end|></think>Yes.<|im_end|>"
    assert encoded.tokens.count(reader.format.closing_id) == 2
    assert learned_text(reader, reader.encode(row("A?", "Yes.", reasoning=[None]))) == "Yes.<|im_end|>"


def test_reasoning_that_the_template_does_not_show_is_refused():
    reader = Reader(tiny_processor())
    with pytest.raises(
        SampleError, match="'r': its answers have `reasoning_content`, which the chat template does not show"
    ):
        reader.encode(row("Yes?", "Yes.", reasoning=["Yes"]))


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch):
    reader = Reader(tiny_processor(), max_length=1000)
    longest = max(map(len, reader.processor.tokenizer.get_vocab()))
    limit = 1000 * (longest + 1)
    cut = reader.encode(row("A?", "x" * (limit - 2)))
    assert len(cut.tokens) == 1000
    monkeypatch.setattr(type(reader.format), "tokenize", None)
    for turns in (("A?", "x" * (limit - 1)), ("x" * limit, "Yes."), ("A?", "x" * 10_000_000)):
        characters = sum(map(len, turns))
        with pytest.raises(
            SampleError,
            match=rf"'r': has {characters:,} characters .* 1,000 tokens \(max_length\) are at most {limit:,}",
        ):
            reader.encode(row(*turns))


def steps_of(call) -> int:
    """How many lines of Python run in a call."""
    lines = 0

    def count(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


def test_the_work_grows_as_the_number_of_turns_and_not_faster():
    reader = Reader(tiny_processor(), max_length=100_000)
    reader.encode(row("A?", "Yes."))
    few, many = (
        steps_of(lambda turns=turns: reader.encode(row(*["A?", "Yes, it is."] * turns))) for turns in (50, 400)
    )
    assert many / few < 8 * 1.25
