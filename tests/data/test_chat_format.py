import copy
import json
import logging
import pickle

import pytest
from jinja2 import TemplateError
from tiny import IMAGE_TOKENS, tiny_processor, tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from switchkd import rendering
from switchkd.data.chat_format import ChatFormat
from switchkd.data.errors import DataError, SampleError, TemplateLimitError
from switchkd.data.reader import Reader
from switchkd.data.template_choice import choose_format, use_format
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


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def little_time(monkeypatch):
    """A fifth of a second for a conversation."""
    monkeypatch.setattr(rendering, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(rendering, "_refused", {})
    rendering._forget()
    yield
    rendering._forget()


@pytest.mark.parametrize("when", ["messages", "add_generation_prompt", "messages | length > 2"])
def test_a_template_without_an_end_is_refused_and_none_takes_its_place(little_time, when):
    template = f"{CHATML}{{% if {when} %}}{ENDLESS}{{% endif %}}"
    with pytest.raises(TemplateLimitError, match=r"takes more than 0\.2 seconds of computing, .*: do not trust"):
        choose_format(tiny_processor(template))
    assert list(rendering._refused) == [template]


def test_a_template_that_waits_for_a_row_ends_the_run_and_not_the_row(little_time):
    template = f"{CHATML}{{% if 'tulip' in messages[0]['content'] | string %}}{ENDLESS}{{% endif %}}"
    reader = Reader(tiny_processor(template))
    sound, row = ({"id": "a", "images": [], "messages": [user(said), assistant("Yes.")]} for said in ("Rose?", "tulip"))
    assert reader.encode(sound).tokens
    for read, given in [(reader.encode, row), (reader.prompts, [{**row, "messages": row["messages"][:1]}])]:
        with pytest.raises(DataError, match=r"takes more than 0\.2 seconds of computing") as caught:
            read(given)
        assert not isinstance(caught.value, SampleError)


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
def test_tokens_are_those_of_the_library(template):
    """On text without typed special tokens our path and `apply_chat_template` must agree exactly."""
    from PIL import Image

    processor = tiny_processor(template)
    messages = copy.deepcopy(TWO_TURNS)
    messages[0]["content"].append(text(" Größe 猫 🐈?"))
    messages[1]["content"][0]["text"] = "  Ein Kätzchen 🐈,\n\n  klein. "
    tokens = choose_format(processor).tokenize(messages, [PLACEHOLDER])
    messages[0]["content"][0] = {"type": "image", "image": Image.new("RGB", (9, 9))}
    expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert tokens.input_ids == expected["input_ids"][0]


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


def written_by(own, messages=TWO_TURNS, placeholders=(PLACEHOLDER,), **options):
    """What a checkpoint with the template `own` learns, answers in brackets, images as one `*`."""
    processor = tiny_processor(own)
    tokens = choose_format(processor, **options).tokenize(messages, list(placeholders))
    return bracketed(processor.tokenizer, tokens).replace(PLACEHOLDER, "*")


#: A template that tells nothing about itself; PART writes a part of a message.
PART = "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
PARTS = "{% for part in m['content'] %}" + PART + "{% endfor %}"
OWN = (
    "{{ 'Sees: ' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    + PARTS
    + "{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
#: As published with LLaVA 1.5: answers are marked, and nothing closes them.
UNCLOSED = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}"
    + PARTS
    + "{{ ' ' }}{% endgeneration %}{% else %}"
    + PARTS
    + "{{ ' ' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
#: As published with many language models: contents are texts.
OF_TEXTS = OWN.replace(PARTS, "{{ m['content'] }}")
#: As published with LLaVA-OneVision: a conversation is not written as its answers are asked for.
OTHER_PROMPT = OWN.replace("' ' }}" + PARTS, "' \\n' }}" + PARTS).replace("assistant ' }}", "assistant\\n' }}")
#: As published with reasoning models: what was thought is written behind the last question only, and asked for.
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n' + (m['reasoning_content'] or '') + '\\n</think>\\n' }}{% endif %}"
    + PARTS + "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)  # fmt: skip


@pytest.mark.parametrize(
    ("own", "learned"),
    [
        (
            OWN,
            "Sees: <|im_start|>user *What is it?<|im_end|><|im_start|>assistant[ A cat.<|im_end|>]"
            "<|im_start|>user Sure?<|im_end|><|im_start|>assistant [Yes.<|im_end|>]",
        ),
        (UNCLOSED, "USER: *What is it? ASSISTANT:[ A cat.] USER: Sure? ASSISTANT:[ Yes.<|im_end|>]"),
        (
            OF_TEXTS,
            "Sees: <|im_start|>user *\nWhat is it?<|im_end|><|im_start|>assistant[ A cat.<|im_end|>]"
            "<|im_start|>user Sure?<|im_end|><|im_start|>assistant [Yes.<|im_end|>]",
        ),
        (
            OTHER_PROMPT,
            "Sees: <|im_start|>user \n*What is it?<|im_end|><|im_start|>assistant \n[A cat.<|im_end|>]"
            "<|im_start|>user \nSure?<|im_end|><|im_start|>assistant\n[Yes.<|im_end|>]",
        ),
        (
            THINKS,
            "<|im_start|>user\n*What is it?<|im_end|>\n<|im_start|>assistant\n[A cat.<|im_end|>]\n"
            "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n[\n</think>\nYes.<|im_end|>]\n",
        ),
    ],
)
def test_answers_are_found_in_what_the_own_template_writes(own, learned):
    assert written_by(own) == learned


def test_a_template_of_texts_is_given_texts_and_otherwise_left_alone():
    processor = tiny_processor(OF_TEXTS)
    chat = choose_format(processor)
    assert chat.template.endswith(OF_TEXTS)
    assert chat.problem is None
    use_format(processor, chat)
    as_texts = [
        {"role": m["role"], "content": "".join(part["text"] or "<image>\n" for part in m["content"])} for m in TWO_TURNS
    ]
    saved = processor.apply_chat_template(TWO_TURNS)
    assert saved == tiny_processor(OF_TEXTS).apply_chat_template(as_texts) == processor.apply_chat_template(as_texts)


#: As published with DeepSeek-R1 and its distilled models: what was thought is taken out of every answer.
FORGETS = OWN.replace(PARTS, "{{ m['content'].split('</think>')[-1] }}")


@pytest.mark.parametrize("answer", ["It purrs.</think>Yes.", "<think>\nIt purrs.\n</think>\n\nYes."])
def test_what_was_thought_in_an_answer_is_not_lost(answer):
    messages = [user("Sure?"), assistant(answer)]
    with pytest.raises(
        SampleError, match=r"leaves 'It purrs.' of its last answer out.*whose template writes what was thought"
    ):
        choose_format(tiny_processor(FORGETS)).tokenize(messages, [])
    earlier = [
        *messages,
        user("Sure?"),
        assistant("<think>\n\n</think>\n\nYes."),
    ]  # templates drop what earlier turns thought
    assert choose_format(tiny_processor(FORGETS)).tokenize(earlier, []).is_answer.count(True)
    assert choose_format(tiny_processor(OF_TEXTS)).tokenize(messages, []).is_answer.count(True)


def test_reasoning_and_tools_reach_the_template():
    own = THINKS.replace("{% for m", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m", 1)
    messages = [user("Sure?"), assistant("Yes.") | {"reasoning_content": "It purrs.", "tool_calls": None}]
    processor = tiny_processor(own)
    tokens = choose_format(processor).tokenize(messages, [], tools=[{"name": "look <image>"}])
    assert bracketed(processor.tokenizer, tokens) == (
        '[{"name": "look <image>"}]'
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n[It purrs.\n</think>\nYes.<|im_end|>]\n"
    )
    assert processor.image_token_id not in tokens.input_ids


@pytest.mark.parametrize("own", [OWN, UNCLOSED, OF_TEXTS, OTHER_PROMPT, THINKS, CHATML, VICUNA])
@pytest.mark.parametrize("answer", ["Yes.", "\nYes.", "\n\n Yes", "  Yes\n", "?", "\tA\n\nB"])
def test_a_prompt_begins_its_training_sequence_whatever_is_answered(own, answer):
    chat = choose_format(tiny_processor(own))
    for messages in (
        [user(IMAGE, "Sure?"), assistant(answer)],
        [user(IMAGE, "A"), assistant(answer), user("B"), assistant(answer)],
    ):
        learned = chat.tokenize(messages, [PLACEHOLDER])
        asked = chat.tokenize(messages[:-1], [PLACEHOLDER], generation_prompt=True)
        length = len(asked.input_ids)
        assert learned.input_ids[:length] == asked.input_ids
        assert learned.is_answer[:length] == asked.is_answer
        assert learned.is_answer[length]
        assert not any(chat.tokenize(messages[:1], [PLACEHOLDER], generation_prompt=True).is_answer)


def merging(tokenizer):
    """Let two line breaks be one token, as in Qwen's vocabulary."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["ĊĊ"] = len(tokenizer)
    state["model"]["merges"].append(["Ċ", "Ċ"])
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    words = pre_tokenizers.Split(Regex(r"\s*[\r\n]+|\S+|\s+"), "isolated")
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


@pytest.mark.parametrize("trims", [False, True])
def test_an_answer_that_begins_with_a_line_break_does_not_merge_with_the_prompt(trims):
    processor = tiny_processor(CHATML)
    merging(processor.tokenizer)
    if trims:  # as Llama 3's: a token of spaces has an empty offset
        processor.tokenizer._tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    assert len(processor.tokenizer("a\n\nYe").input_ids) == 4
    chat = choose_format(processor)
    messages = [user("Q"), assistant("\nYes."), user("Q"), assistant("\nNo.")]
    assert bracketed(processor.tokenizer, chat.tokenize(messages[:2], [])).endswith("assistant\n[\nYes.<|im_end|>]\n")
    # before the last answer the text stays as plain code writes it: the merged token belongs to the prompt, and is not learned
    both = chat.tokenize(messages, [])
    assert bracketed(processor.tokenizer, both).endswith(
        "assistant\n\n[Yes.<|im_end|>]\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n[\nNo.<|im_end|>]\n"
    )
    asked = processor.apply_chat_template(messages[:3], add_generation_prompt=True, tokenize=True, return_dict=True)
    assert both.input_ids[: len(asked["input_ids"][0])] == asked["input_ids"][0]


def test_saved_templates_hold_no_marks_and_write_the_same():
    for own in (
        UNCLOSED,
        UNCLOSED.replace("{% generation %}", "\n {%- generation %}\n ").replace("{% endg", " {%+ endg"),
    ):
        chat = choose_format(tiny_processor(own))
        assert "generation %}" not in chat.saved
        assert written_by(chat.saved) == written_by(own)
        assert choose_format(tiny_processor(chat.saved)).saved == chat.saved


def test_other_templates_of_a_processor_stay():
    processor = tiny_processor({"default": OF_TEXTS, "tools": "{{ 1 }}"})
    use_format(processor, choose_format(processor))
    assert processor.chat_template["default"].endswith(OF_TEXTS)
    assert processor.chat_template["tools"] == "{{ 1 }}"


#: The answers are not in it; nor are the images.
WITHOUT_ANSWERS = (
    "{% for m in messages if m['role'] == 'user' %}{{ 'USER: ' }}" + PARTS + "{% endfor %}{{ 'ASSISTANT:' }}"
)
WITHOUT_IMAGES = OWN.replace("{{ '<image>' }}", "").replace(
    "m['content'] %}", "m['content'] if m['content'] is not string %}"
)


@pytest.mark.parametrize(
    ("own", "replacement", "reason"),
    [
        (
            WITHOUT_ANSWERS,
            VICUNA,
            "writes message 2, an answer, 0 times; the first token that differs is number 1, 'A' (36)",
        ),
        (WITHOUT_IMAGES, CHATML, "has 0 image marks for 1 images"),
        ("{{ raise_exception('ASSISTANT: no') }}", VICUNA, "no; it writes nothing that could be compared"),
        (None, CHATML, "it has none"),
    ],
)
def test_ours_replaces_a_template_that_cannot_be_used_and_says_so(caplog, own, replacement, reason):
    from switchkd.data import template_choice as templates

    templates._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        chat = choose_format(tiny_processor(own))
    assert chat.template == replacement
    assert reason in caplog.text
    assert reason in chat.described


def test_a_template_that_cannot_be_used_and_fits_none_of_ours_is_an_error():
    own = "{% for m in messages %}[INST]{% endfor %}"
    with pytest.raises(DataError, match=r"an answer, 0 times.* none of ours fits it; .*data.template: FILE"):
        choose_format(tiny_processor(own))


def test_a_processor_of_no_family_needs_a_template_of_its_own():
    class OtherProcessor(LlavaProcessor):
        """As any that no family names."""

    processor = tiny_processor(None)
    processor.__class__ = OtherProcessor
    with pytest.raises(DataError, match=r"\(it has none\) and none of ours fits it"):
        choose_format(processor)
    processor.chat_template = CHATML
    assert choose_format(processor).template == CHATML


def test_the_recipe_can_choose_another_template(tmp_path):
    (tmp_path / "own.jinja").write_text(OWN)
    assert choose_format(tiny_processor(CHATML), "llava").template == VICUNA
    chat = choose_format(tiny_processor(CHATML), str(tmp_path / "own.jinja"))
    assert chat.template == OWN
    assert chat.described.startswith(f"{tmp_path}")
    with pytest.raises(DataError, match=r"neither own nor llava, and no file that can be read: none\.jinja"):
        choose_format(tiny_processor(CHATML), "none.jinja")
    (tmp_path / "own.jinja").write_text("{{ 1 }}")
    with pytest.raises(
        DataError, match=r"and it cannot be used: the chat template writes message 2, an answer, 0 times"
    ):
        choose_format(tiny_processor(CHATML), str(tmp_path / "own.jinja"))


def test_an_answer_without_an_end_is_an_error():
    processor = tiny_processor(UNCLOSED)
    processor.tokenizer.eos_token = None
    with pytest.raises(DataError, match="no eos token: nothing would teach a model to stop"):
        choose_format(processor).tokenize(TWO_TURNS, [PLACEHOLDER])


def test_our_templates_refuse_parts_that_they_cannot_write():
    film = {"role": "user", "content": [{"type": "video"}, text("What is it?")]}
    for template in (CHATML, VICUNA, choose_format(tiny_processor(OF_TEXTS)).template):
        with pytest.raises(TemplateError, match="a part of type 'video'"):
            tiny_processor(template).apply_chat_template([film], tokenize=False)


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
