import copy
import logging
import pickle

import pytest
from tiny import IMAGE_TOKENS, tiny_processor, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from switchkd.data.chat_format import ChatFormat, choose_format
from switchkd.data.errors import DataError, SampleError
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.llava import VICUNA

IMAGE = {"type": "image", "text": None}
PLACEHOLDER = "<image>" * IMAGE_TOKENS


def text(value):
    return {"type": "text", "text": value}


def user(*content):
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in content]}


def assistant(value):
    return {"role": "assistant", "content": [text(value)]}


TWO_TURNS = [user(IMAGE, "What is it?"), assistant("A cat."), user("Sure?"), assistant("Yes.")]

GOLDEN_CHATML = (
    "<|im_start|>user\n" + PLACEHOLDER + "\nWhat is it?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n[Yes.<|im_end|>]\n"
)
GOLDEN_VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: " + PLACEHOLDER + "\nWhat is it? ASSISTANT:[ A cat.<|im_end|>]"
    "USER: Sure? ASSISTANT:[ Yes.<|im_end|>]"
)


def bracketed(tokenizer, tokens):
    """The text with each run of answer tokens in square brackets."""
    written, inside = "", False
    for index, answer in zip(tokens.input_ids, tokens.is_answer, strict=True):
        written += "[" * (answer and not inside) + "]" * (inside and not answer) + tokenizer.decode([index])
        inside = answer
    return written + "]" * inside


def pieces(tokenizer, tokens):
    return [tokenizer.decode([i]) for i, answer in zip(tokens.input_ids, tokens.is_answer, strict=True) if answer]


@pytest.mark.parametrize(("template", "golden"), [(CHATML, GOLDEN_CHATML), (VICUNA, GOLDEN_VICUNA)])
def test_golden_rendering_and_mask_of_our_templates(template, golden):
    processor = tiny_processor(template)
    tokens = ChatFormat(processor, template).tokenize(TWO_TURNS, [PLACEHOLDER])
    assert bracketed(processor.tokenizer, tokens) == golden


def test_mask_token_by_token():
    processor = tiny_processor()
    tokens = choose_format(processor).tokenize([user("No"), assistant("Yes."), user("A"), assistant("No.")], [])
    named = [
        (processor.tokenizer.decode([i]), answer) for i, answer in zip(tokens.input_ids, tokens.is_answer, strict=True)
    ]
    head = [("<|im_start|>", 0), ("a", 0), ("ss", 0), ("istan", 0), ("t", 0), ("\n", 0)]
    turn = [("<|im_start|>", 0), ("user", 0), ("\n", 0)]
    assert named == [
        *turn, ("No", 0), ("<|im_end|>", 0), ("\n", 0),
        *head, ("Y", 1), ("es", 1), (".", 1), ("<|im_end|>", 1), ("\n", 0),
        *turn, ("A", 0), ("<|im_end|>", 0), ("\n", 0),
        *head, ("No", 1), (".", 1), ("<|im_end|>", 1), ("\n", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("template", [CHATML, VICUNA])
def test_tokens_and_mask_are_those_of_the_library(template):
    """On text without typed special tokens our path and `apply_chat_template` must agree exactly."""
    from PIL import Image

    processor = tiny_processor(template)
    messages = copy.deepcopy(TWO_TURNS)
    messages[0]["content"].append(text(" Größe 猫 🐈?"))
    messages[1]["content"][0]["text"] = "  Ein Kätzchen 🐈,\n\n  klein. "
    tokens = choose_format(processor).tokenize(messages, [PLACEHOLDER])
    messages[0]["content"][0] = {"type": "image", "image": Image.new("RGB", (9, 9))}
    expected = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, processor_kwargs={}
    )
    assert tokens.input_ids == expected["input_ids"][0]
    assert [int(answer) for answer in tokens.is_answer] == expected["assistant_masks"][0]


@pytest.mark.parametrize("template", [CHATML, VICUNA])
def test_a_prompt_is_the_training_sequence_up_to_the_answer(template):
    chat = ChatFormat(tiny_processor(template), template)
    whole = chat.tokenize(TWO_TURNS[:2], [PLACEHOLDER])
    prompt = chat.tokenize(TWO_TURNS[:1], [PLACEHOLDER], generation_prompt=True)
    assert prompt.input_ids == whole.input_ids[: whole.is_answer.index(True)]


@pytest.mark.parametrize("template", [CHATML, VICUNA])
def test_typed_special_tokens_stay_text(template):
    processor = tiny_processor(template)
    chat = ChatFormat(processor, template)
    typed = "Why <image> or <|im_end|>\n<|im_start|>assistant\n, <|endoftext|>?<image>"
    messages = [user(IMAGE, typed, IMAGE), assistant("It is <|im_end|> or <image>."), user("<image>"), assistant("No.")]
    tokens = chat.tokenize(messages, [PLACEHOLDER, PLACEHOLDER])
    plain = chat.tokenize([user(IMAGE, "x", IMAGE), assistant("x"), user("x"), assistant("x")], [PLACEHOLDER] * 2)
    special = set(processor.tokenizer.all_special_ids) | {processor.image_token_id}
    assert [i for i in tokens.input_ids if i in special] == [i for i in plain.input_ids if i in special]
    assert tokens.input_ids.count(processor.image_token_id) == 2 * IMAGE_TOKENS
    assert typed in processor.tokenizer.decode(tokens.input_ids)
    answers = "".join(pieces(processor.tokenizer, tokens))
    assert answers.replace(" No", "No").strip() == "It is <|im_end|> or <image>.<|im_end|>No.<|im_end|>"
    labelled = [i for i, answer in zip(tokens.input_ids, tokens.is_answer, strict=True) if answer]
    assert processor.image_token_id not in labelled


def test_a_special_token_typed_in_two_parts_stays_text():
    processor = tiny_processor()
    messages = [user("<ima", "ge> <|im_", "end|>"), assistant("Yes.")]
    tokens = choose_format(processor).tokenize(messages, [])
    assert processor.image_token_id not in tokens.input_ids
    assert tokens.input_ids.count(processor.tokenizer.eos_token_id) == 2


def test_text_may_hold_the_character_that_breaks():
    chat = choose_format(tiny_processor())
    messages = [user("\ufdd0 <image> \ufdd1"), assistant("Yes.")]
    assert "\ufdd0 <image> \ufdd1" in chat.tokenizer.decode(chat.tokenize(messages, []).input_ids)
    with pytest.raises(SampleError, match="not characters"):
        chat.tokenize([user("".join(map(chr, range(0xFDD0, 0xFDF0)))), assistant("Yes.")], [])


def test_image_marks_and_images_must_agree():
    with pytest.raises(SampleError, match="has 1 image marks for 2 images"):
        choose_format(tiny_processor()).tokenize(TWO_TURNS, [PLACEHOLDER, PLACEHOLDER])


def test_chat_formats_can_be_pickled():
    chat = choose_format(tiny_processor())
    copied = pickle.loads(pickle.dumps(chat))
    assert copied.tokenize(TWO_TURNS, [PLACEHOLDER]) == chat.tokenize(TWO_TURNS, [PLACEHOLDER])


def with_bos(tokenizer):
    bos = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", bos)]
    )
    tokenizer.bos_token = "<|endoftext|>"


def test_a_tokenizer_that_begins_with_bos_keeps_it():
    processor = tiny_processor()
    with_bos(processor.tokenizer)
    tokens = choose_format(processor).tokenize(TWO_TURNS[2:], [])
    assert tokens.input_ids == processor(text=processor.apply_chat_template(TWO_TURNS[2:]))["input_ids"][0]
    assert tokens.input_ids[0] == processor.tokenizer.bos_token_id
    assert bracketed(processor.tokenizer, tokens).startswith("<|endoftext|><|im_start|>user\nSure?")


def test_spaces_inside_answers_count_when_the_tokenizer_trims_offsets():
    """As Llama 3's does: a token made of spaces then has an empty offset."""
    processor = tiny_processor()
    processor.tokenizer._tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokens = choose_format(processor).tokenize([user("Q"), assistant("A    b   !")], [])
    assert bracketed(processor.tokenizer, tokens).endswith("assistant\n[A    b   !<|im_end|>]\n")


def test_a_sentencepiece_style_tokenizer():
    """As Llama 2's is: a word-start mark in front, spaces as marks; answers are found all the same."""
    words = ["▁", *map(chr, range(33, 127))]
    special = ["<unk>", "</s>", "<image>"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(special + words)}, [], unk_token="<unk>"))
    backend.normalizer = normalizers.Replace("\n", "_")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(special)
    processor = tiny_processor(VICUNA)
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    processor.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    messages = [user(IMAGE, "Is </s> red?"), assistant("No, <image>."), user("Why?"), assistant("So.")]
    tokens = choose_format(processor).tokenize(messages, [PLACEHOLDER])
    written = "".join(processor.tokenizer.convert_ids_to_tokens(tokens.input_ids))
    assert "Is▁<▁/s>▁red?" in written  # the extra mark at the break: still text
    assert tokens.input_ids.count(processor.tokenizer.eos_token_id) == 2
    assert tokens.input_ids.count(processor.image_token_id) == IMAGE_TOKENS
    labelled = [i for i, answer in zip(tokens.input_ids, tokens.is_answer, strict=True) if answer]
    shown = "".join(processor.tokenizer.convert_ids_to_tokens(labelled))
    assert shown == "▁No,▁<▁image>.</s>▁So.</s>"


def test_the_own_template_is_used_when_it_marks_and_closes_answers():
    own = CHATML.replace("\\n", " ")
    assert choose_format(tiny_processor(own)).template == own


def test_a_closing_token_outside_the_generation_block_still_counts():
    own = (
        "{% for m in messages %}{{ m['role'] + ':' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'][0]['text'] }}{% endgeneration %}"
        "{% else %}{{ m['content'][0]['text'] }}{% endif %}{{ eos_token }}{% endfor %}"
    )
    processor = tiny_processor(own)
    tokens = choose_format(processor).tokenize(TWO_TURNS[2:], [])
    assert bracketed(processor.tokenizer, tokens) == "user:Sure?<|im_end|>assistant:[Yes.<|im_end|>]"


# A template as published with LLaVA 1.5 is: answers are marked but never closed.
UNCLOSED = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'][0]['text'] + ' ' }}{% endgeneration %}"
    "{% else %}{{ m['content'][0]['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
UNMARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'][0]['text'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
FOR_TEXT_ONLY = "{% for m in messages %}<|im_start|>{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}"


@pytest.mark.parametrize(
    ("own", "replacement", "reason"),
    [
        (UNCLOSED, VICUNA, "does not close answers"),
        (UNMARKED, CHATML, "marks no answers"),
        (FOR_TEXT_ONLY, CHATML, "marks 4 answers where the conversation has 2"),
        (None, CHATML, "there is none"),
    ],
)
def test_ours_replaces_a_template_that_cannot_serve_and_the_log_says_so(caplog, own, replacement, reason):
    from switchkd.data import chat_format as templates

    templates._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert choose_format(tiny_processor(own)).template == replacement
    assert reason in caplog.text


def test_a_template_that_marks_nothing_and_fits_none_of_ours_is_an_error():
    own = "{% for m in messages %}[INST] {{ m['content'][0]['text'] }} [/INST]{% endfor %}"
    with pytest.raises(DataError, match=r"marks no answers.*put {% generation %}"):
        choose_format(tiny_processor(own))


def test_a_processor_of_no_family_needs_a_template_of_its_own():
    class OtherProcessor(LlavaProcessor):
        """As any that no family names."""

    processor = tiny_processor(None)
    processor.__class__ = OtherProcessor
    with pytest.raises(DataError, match=r"\(there is none\) and none of ours fits it; put {% generation %}"):
        choose_format(processor)
    processor.chat_template = CHATML
    assert choose_format(processor).template == CHATML


def test_a_template_that_marks_the_wrong_text_is_an_error():
    own = CHATML.replace("{%- generation -%}", "{%- generation -%}Answer:")
    chat = ChatFormat(tiny_processor(own), own)
    with pytest.raises(DataError, match=r"marks 'Answer:A cat\.<\|im_end\|>' where the answer is 'A cat\.'"):
        chat.tokenize(TWO_TURNS[:2], [PLACEHOLDER])


def test_a_template_that_refuses_a_conversation_is_reported():
    own = "{{ raise_exception('roles must alternate') }}" + CHATML
    with pytest.raises(DataError, match="cannot render this conversation: roles must alternate"):
        ChatFormat(tiny_processor(own), own).tokenize(TWO_TURNS, [PLACEHOLDER])


def test_an_image_token_that_the_tokenizer_does_not_know_is_an_error():
    processor = tiny_processor()
    processor.image_token = "<picture>"
    with pytest.raises(DataError, match="'<picture>' is no added token"):
        choose_format(processor)


def test_the_tiny_tokenizer_repeats():
    assert tiny_tokenizer().get_vocab() == tiny_tokenizer().get_vocab()
