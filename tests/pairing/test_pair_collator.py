"""One conversation for two readers: their own pixels, templates and tokens, and the answer tokens that both have."""

import pickle

import pytest
import torch
from data.test_collate import ROWS, picture, row
from switchkd.pairing.pair_collate import PairCollator
from switchkd.types import answer_targets
from tiny import IMAGE_TOKENS, tiny_processor
from tiny_tokenizers import other_processor, sentencepiece_tokenizer, wordpiece_tokenizer

from switchkd.data.collate import Collator
from switchkd.data.errors import SampleError
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.llava import VICUNA
from switchkd.pairing.alignment import match_ids


def make(theirs, *, max_length=2048, ours=None):
    student, teacher = (Collator(p, max_length=max_length) for p in (ours or tiny_processor(), theirs))
    tokenizers = [side.processor.tokenizer for side in (student, teacher)]
    ids = match_ids(*tokenizers, (tokenizers[0].eos_token_id, tokenizers[1].eos_token_id))
    return PairCollator(student, teacher, ids)


def compared(collator, batch):
    """The tokens that are compared, as text, for both sides."""
    sides = []
    for who, side, column in ((collator.student, batch, 0), (collator.teacher, batch["teacher"], 1)):
        targets = answer_targets(side["labels"])[batch["aligned"][:, column]]
        sides.append([who.processor.tokenizer.decode([i]).strip().removeprefix("##") for i in targets.tolist()])
    return sides


def test_each_side_reads_what_its_own_collator_gives():
    collator = make(other_processor(sentencepiece_tokenizer()))
    batch = collator(ROWS)
    for side, alone in ((batch, collator.student(ROWS)), (batch["teacher"], collator.teacher(ROWS))):
        for name, tensor in alone.items():
            assert torch.equal(side[name], tensor), name
    assert batch["pixel_values"].shape[-1] == 32
    assert batch["teacher"]["pixel_values"].shape[-1] == 48
    images = batch["teacher"]["input_ids"] == collator.teacher.format.image_token_id
    assert images.sum(dim=1).tolist() == [9, 18, 0]
    assert IMAGE_TOKENS == 16


END = ["<|im_end|>"]
TEACHERS = {
    # Vicuna's answers begin with a space, and " A" is another token than "A": only what follows is the same
    "template": (
        lambda: other_processor(tiny_processor().tokenizer, chat_template=VICUNA),
        ["c", "at", ".", *END, "es", ".", *END],
    ),
    "chatml": (
        lambda: other_processor(tiny_processor().tokenizer, chat_template=CHATML),
        ["A", "c", "at", ".", *END, "Y", "es", ".", *END],
    ),
    "sentencepiece": (lambda: other_processor(sentencepiece_tokenizer()), ["c", "at", ".", "</s>", "es", ".", "</s>"]),
    "wordpiece": (lambda: other_processor(wordpiece_tokenizer()), [".", "<end>", ".", "<end>"]),
}


@pytest.mark.parametrize("name", TEACHERS)
def test_the_tokens_that_are_the_same_text_are_compared(name):
    theirs, expected = TEACHERS[name]
    collator = make(theirs())
    batch = collator(ROWS[:1])
    ours, theirs = compared(collator, batch)
    assert theirs == expected
    assert ours == [END[0] if text in ("</s>", "<end>") else text for text in expected]
    share = len(expected) / len(answer_targets(batch["labels"]))
    assert collator.aligned_share(ROWS[:1]) == pytest.approx(share)


def test_places_count_through_the_rows_of_a_batch():
    collator = make(other_processor(sentencepiece_tokenizer()))
    whole = collator(ROWS)["aligned"]
    parts, ours, theirs = [], 0, 0
    for one in ROWS:
        batch = collator([one])
        parts.append(batch["aligned"] + torch.tensor([ours, theirs]))
        ours += len(answer_targets(batch["labels"]))
        theirs += len(answer_targets(batch["teacher"]["labels"]))
    assert torch.equal(whole, torch.cat(parts))


def test_both_sides_end_at_the_same_answer_token():
    """The teacher's template is longer, so its last answer is cut first; the student learns nothing beyond it."""
    theirs = other_processor(tiny_processor().tokenizer, chat_template=CHATML, image_size=96, patch_size=16)
    whole = make(theirs).encode(ROWS[0])
    assert len(whole.teacher.input_ids) == len(whole.student.input_ids) + 20
    short = make(theirs, max_length=len(whole.teacher.input_ids) - 3).encode(ROWS[0])
    tokenizer = theirs.tokenizer
    text = [
        tokenizer.decode([label for label in side.labels if label != -100]) for side in (short.student, short.teacher)
    ]
    assert text == ["A cat.<|im_end|>Yes"] * 2
    assert len(short.student.input_ids) == len(whole.student.input_ids)  # nothing is cut from what it reads
    assert (len(short.input_ids), short.tokens) == (len(whole.teacher.input_ids) - 3, len(whole.teacher.input_ids))
    assert len(short.aligned) == len(whole.aligned) - 2


def test_a_row_without_a_common_answer_token_is_refused():
    theirs = other_processor(wordpiece_tokenizer(), chat_template=VICUNA)
    collator = make(theirs)
    first = next(i for i, label in enumerate(collator.student.encode(ROWS[0]).labels) if label != -100)
    collator.student.max_length = first + 1  # the student keeps "A" of "A cat.", the teacher the whole word "A"
    assert len(collator.encode(ROWS[0]).student.input_ids) == first + 1
    long = row("Which?", "catastrophe", images=[picture()], name="long")
    with pytest.raises(SampleError, match=r"'long': .* gives 1 answers and the teacher's 0 within max_length"):
        collator.encode(long)


def test_answers_that_one_template_hides_are_refused():
    """A template that writes a special token into the answer: its tokens cannot be placed in it."""
    theirs = other_processor(tiny_processor().tokenizer, chat_template=CHATML)
    collator = make(theirs)
    collator.teacher.format.template = CHATML.replace(
        "{{ part['text'] }}", "{{ part['text'][:2] }}<|im_start|>{{ part['text'][2:] }}"
    )
    with pytest.raises(
        SampleError,
        match=r"'r': the student's chat template gives 2 answers and the teacher's 0 within max_length \(answer 0",
    ):
        collator.encode(ROWS[0])


def test_the_pair_collator_can_be_sent_to_workers():
    collator = make(other_processor(sentencepiece_tokenizer()))
    sent = pickle.loads(pickle.dumps(collator))
    assert torch.equal(sent(ROWS)["aligned"], collator(ROWS)["aligned"])
    assert torch.equal(sent(ROWS)["teacher"]["input_ids"], collator(ROWS)["teacher"]["input_ids"])
