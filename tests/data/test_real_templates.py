"""The chat templates of public models, as they are and changed as fine-tunes change them; the files are found by SWITCHKD_REAL."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_templates import processor_with, table, template_files
from shown_diffs import ROOT

from switchkd.data.template_choice import choose_format, use_format

pytestmark = pytest.mark.skipif(not template_files(), reason="SWITCHKD_REAL names no folder of real templates")
every_template = pytest.mark.parametrize("file", template_files(), ids=lambda file: file.stem)
#: What a template cannot write.
REFUSED = {"google-gemma-2-2b-it": {"system": "System role not supported"}}


def said(role, *parts):
    return {
        "role": role,
        "content": [{"type": "image"} if p == "image" else {"type": "text", "text": p} for p in parts],
    }


TEXT = [said("user", "What is it?"), said("assistant", "A cat."), said("user", "Sure?"), said("assistant", "Yes.")]
SEEN = [said("user", "image", "image", "Same?"), said("assistant", "No.")]


@every_template
def test_the_own_template_is_used_and_its_prompt_begins_what_is_learned(file):
    own = file.read_text()
    processor = processor_with(own)
    chat = choose_format(processor)
    assert chat.problem is None
    assert chat.template.endswith(own)
    refused = REFUSED.get(file.stem, {})
    assert chat.refused.keys() == refused.keys()
    assert all(refused[probe] in reason for probe, reason in chat.refused.items())
    use_format(processor, chat)
    for messages, images in ((TEXT[:2], 0), (TEXT, 0), (SEEN, 2)):
        placeholders = [processor.image_token] * images
        learned = chat.tokenize(messages, placeholders)
        plain = processor.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        starts_with_bos = plain.startswith(processor.tokenizer.bos_token)
        asked = processor.tokenizer(plain, add_special_tokens=not starts_with_bos).input_ids
        assert learned.input_ids[: len(asked)] == asked
        places = [place for place, answer in enumerate(learned.is_answer) if answer and place >= len(asked)]
        assert places == list(range(len(asked), places[-1] + 1))
        said_last = processor.tokenizer.decode([learned.input_ids[place] for place in places])
        assert said_last.endswith(f"{messages[-1]['content'][0]['text']}{chat.ending}")


def test_the_table_in_the_docs_is_what_the_templates_give():
    assert table() in (ROOT / "docs/families.md").read_text()


@pytest.mark.long
@settings(max_examples=25, deadline=None)
@given(
    file=st.sampled_from(template_files() or [None]),
    system=st.text(
        st.characters(codec="utf-8", exclude_characters="'\"\\{}%#<>[]|\r", exclude_categories=["C"]), min_size=1
    ),
    role=st.sampled_from(["<|turn_of|>", "<<speaker>>", "### "]),
    end=st.sampled_from(["<|stop|>", "<|fin|>", "</eot>"]),
)
def test_a_fine_tune_keeps_its_system_prompt_its_turns_and_its_end(file, system, role, end):
    own = file.read_text()
    usual = choose_format(processor_with(own))
    opening = next(t for t in OPENINGS if t in own)
    changed = "{{ '" + system + "' }}" + own.replace(opening, role)
    eos = "</s>"
    if usual.closing is not None and usual.closing in own and usual.closing != opening:
        changed = changed.replace(usual.closing, end)
    else:
        eos = end
    chat = choose_format(processor_with(changed, eos=eos))
    assert chat.template.endswith(changed)
    assert chat.ending == end
    tokens = chat.tokenize(TEXT, [])
    written = chat.tokenizer.decode(tokens.input_ids)
    assert written.lstrip("\n").startswith(system.strip()) or system.strip() in written
    assert role.strip() in written
    assert opening.strip() not in written
    learned = [index for index, answer in zip(tokens.input_ids, tokens.is_answer, strict=True) if answer]
    assert learned[-1] == chat.tokenizer.convert_tokens_to_ids(end) == chat.closing_id


#: What begins a turn in one of the templates.
OPENINGS = [
    "<|im_start|>", "<start_of_turn>", "<|turn>", "<|start_header_id|>", "<|start_of_role|>", "[INST]", "<|user|>", "<｜User｜>", "USER: ",
]  # fmt: skip
