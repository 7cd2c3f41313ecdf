"""One conversation for two readers: their own pixels, templates and tokens, and the answer tokens that both have."""

import pickle

import pytest
import torch
from data.test_collate import ROWS, assert_equal, picture, row
from tiny import IMAGE_TOKENS, tiny_processor
from tiny_tokenizers import other_processor, sentencepiece_tokenizer, wordpiece_tokenizer

from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.data.errors import SampleError
from switchkd.data.reader import Reader
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.llava import VICUNA
from switchkd.pairing.alignment import match_ids
from switchkd.pairing.reading import OwnInputs, SameInputs


def make(teacher_processor, *, max_length=2048):
    student, teacher = (Reader(p, max_length=max_length) for p in (tiny_processor(), teacher_processor))
    tokenizers = [reader.processor.tokenizer for reader in (student, teacher)]
    ids = match_ids(*tokenizers, (tokenizers[0].eos_token_id, tokenizers[1].eos_token_id))
    return Collator(student, {TEACHER: OwnInputs(teacher, ids)})


def teacher_of(collator) -> Reader:
    return collator.teachers[TEACHER].reader


def places(chosen, answers):
    """Places among the answers; all of them where none are listed."""
    return torch.arange(len(answers)) if chosen is None else chosen


def compared(collator, batch):
    """The tokens that are compared, as text, for both sides."""
    aligned, sides = batch.shared[TEACHER], []
    for reader, inputs, chosen in (
        (collator.student, batch.student, aligned.student),
        (teacher_of(collator), batch.readers[TEACHER], aligned.reader),
    ):
        targets = inputs.targets[places(chosen, inputs.targets)]
        sides.append([reader.processor.tokenizer.decode([i]).strip().removeprefix("##") for i in targets.tolist()])
    return sides


def test_each_side_reads_what_its_own_reader_gives():
    collator = make(other_processor(sentencepiece_tokenizer()))
    batch = collator(ROWS)
    for inputs, reader in ((batch.student, collator.student), (batch.readers[TEACHER], teacher_of(collator))):
        assert_equal(inputs, reader.inputs([reader.encode(one) for one in ROWS]))
    assert batch.student.images["pixel_values"].shape[-1] == 32
    assert batch.readers[TEACHER].images["pixel_values"].shape[-1] == 48
    images = batch.readers[TEACHER].tokens == teacher_of(collator).format.image_token_id
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
    build, expected = TEACHERS[name]
    collator = make(build())
    batch = collator(ROWS[:1])
    student_text, teacher_text = compared(collator, batch)
    assert teacher_text == expected
    assert student_text == [END[0] if text in ("</s>", "<end>") else text for text in expected]
    measured = collator.measure(ROWS[0])
    assert (measured.compared, measured.answers) == (len(expected), len(batch.student.targets))


def test_targets_are_columns_of_the_ids_that_are_compared():
    tokenizers = [tiny_processor().tokenizer, sentencepiece_tokenizer()]
    ids = match_ids(*tokenizers, tuple(tokenizer.eos_token_id for tokenizer in tokenizers))
    batch = make(other_processor(tokenizers[1]))(ROWS)
    aligned = batch.shared[TEACHER]
    for chosen, inputs, of_columns in (
        (aligned.student, batch.student, ids[0]),
        (aligned.reader, batch.readers[TEACHER], ids[1]),
    ):
        expected = inputs.targets[places(chosen, inputs.targets)]
        assert [of_columns[column] for column in aligned.targets.tolist()] == expected.tolist()


def test_all_answers_are_compared_where_both_have_the_same():
    """Then no places are listed."""
    collator = make(other_processor(tiny_processor().tokenizer, chat_template=CHATML))
    batch = collator(ROWS)
    assert batch.readers[TEACHER] is not batch.student
    assert batch.shared[TEACHER].student is None
    assert batch.shared[TEACHER].reader is None
    assert torch.equal(batch.student.targets, batch.readers[TEACHER].targets)


def test_of_one_tokenizer_the_number_of_ids_is_enough():
    processor = other_processor(tiny_processor().tokenizer, chat_template=CHATML)
    most = max(Reader(tiny_processor()).encode(ROWS[0]).tokens[-3:])
    whole = Collator(Reader(tiny_processor()), {TEACHER: OwnInputs(Reader(processor), 320)})(ROWS)
    cut = Collator(Reader(tiny_processor()), {TEACHER: OwnInputs(Reader(processor), most)})(ROWS)
    assert torch.equal(whole.shared[TEACHER].targets, whole.student.targets)
    kept = whole.student.targets < most
    assert torch.equal(cut.shared[TEACHER].targets, whole.student.targets[kept])
    assert torch.equal(places(cut.shared[TEACHER].student, kept), kept.nonzero().flatten())


def test_with_the_same_inputs_every_answer_is_compared():
    reader = Reader(tiny_processor())
    encoded = reader.encode(ROWS[0])
    reading = SameInputs(320).read(ROWS[0], encoded)
    assert reading.student is encoded
    assert reading.teacher is None
    assert reading.compared == [(number, number) for number in range(len(encoded.answers))]
    assert reading.columns == [encoded.tokens[place] for place in encoded.answers]
    assert SameInputs(320).reader is None


def test_places_count_through_the_samples_of_a_batch():
    collator = make(other_processor(sentencepiece_tokenizer()))
    whole = collator(ROWS).shared[TEACHER]
    parts, student_answers, teacher_answers = [], 0, 0
    for one in ROWS:
        batch = collator([one])
        aligned, inputs = batch.shared[TEACHER], (batch.student, batch.readers[TEACHER])
        parts.append(
            (places(aligned.student, inputs[0].targets) + student_answers,
             places(aligned.reader, inputs[1].targets) + teacher_answers)
        )  # fmt: skip
        student_answers += len(inputs[0].targets)
        teacher_answers += len(inputs[1].targets)
    for chosen, expected in zip((whole.student, whole.reader), zip(*parts, strict=True), strict=True):
        assert torch.equal(places(chosen, torch.cat(expected)), torch.cat(expected))


def test_both_sides_end_at_the_same_answer_token():
    """The teacher's template is longer, so its last answer is cut first; the student learns nothing beyond it."""
    processor = other_processor(tiny_processor().tokenizer, chat_template=CHATML, image_size=96, patch_size=16)
    whole = make(processor).encode(ROWS[0])
    count = len(whole.teachers[TEACHER].teacher.tokens)
    assert count == len(whole.student.tokens) + 20
    collator = make(processor, max_length=count - 3)
    short = collator.encode(ROWS[0])
    reading = short.teachers[TEACHER]
    assert short.student is reading.student
    text = [
        processor.tokenizer.decode([side.tokens[place] for place in side.answers])
        for side in (short.student, reading.teacher)
    ]
    assert text == ["A cat.<|im_end|>Yes"] * 2
    assert len(short.student.tokens) == len(whole.student.tokens)  # nothing is cut from what it reads
    measured = collator.measure(ROWS[0])
    assert (measured.length, measured.tokens) == (count - 3, count)
    assert len(reading.compared) == len(whole.teachers[TEACHER].compared) - 2


def test_a_row_without_a_common_answer_token_is_refused():
    collator = make(other_processor(wordpiece_tokenizer(), chat_template=VICUNA))
    first = collator.student.encode(ROWS[0]).answers[0]
    collator.student.max_length = first + 1  # the student keeps "A" of "A cat.", the teacher the whole word "A"
    assert len(collator.encode(ROWS[0]).student.tokens) == first + 1
    long = row("Which?", "catastrophe", images=[picture()], name="long")
    with pytest.raises(SampleError, match=r"'long': .* gives 1 answers and the teacher's 0 within max_length"):
        collator.encode(long)


def test_answers_that_one_template_rewrites_are_refused():
    """A template that writes a special token into the answer: its tokens cannot be placed in it."""
    collator = make(other_processor(tiny_processor().tokenizer, chat_template=CHATML))
    teacher_of(collator).format.template = CHATML.replace(
        "{{ part['text'] }}", "{{ part['text'][:2] }}<|im_start|>{{ part['text'][2:] }}"
    )
    with pytest.raises(SampleError, match=r"'r': .* writes what follows message 2 in another way for another answer"):
        collator.encode(ROWS[0])


def test_own_inputs_can_be_sent_to_workers():
    collator = make(other_processor(sentencepiece_tokenizer()))
    first, second = collator(ROWS), pickle.loads(pickle.dumps(collator))(ROWS)
    assert_equal(first.readers[TEACHER], second.readers[TEACHER])
    own, sent = first.shared[TEACHER], second.shared[TEACHER]
    for tensor, again in zip(own[:3], sent[:3], strict=True):
        assert torch.equal(tensor, again)
    assert own.places.tolist() == sent.places.tolist() == own.student.tolist()
