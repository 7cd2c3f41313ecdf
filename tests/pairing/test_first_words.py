"""The first word of an answer, whose token has a space before it in one model and none in the other: over ids that match but for it."""

from dataclasses import replace

import pytest
import torch
from data.test_collate import ROWS, row
from fused_cases import TOKENS, analytic, by_autograd, gradients, inputs
from pairing.test_mismatch import IDS, make_pair, two_readers
from tiny import tiny_processor
from tiny_models import plain_logits
from tiny_tokenizers import VICUNA, other_processor, sentencepiece_tokenizer, wordpiece_tokenizer

from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.data.reader import Reader
from switchkd.data.template_choice import choose_format
from switchkd.losses import cross_entropy, dbild, fused_loss, plain_loss
from switchkd.methods import KD, BiLD, LLaVAMoD, SwitchKD
from switchkd.models.families.chat_blocks import CHATML
from switchkd.pairing import Pair
from switchkd.pairing.alignment import match_ids, spaced_side, token_bytes
from switchkd.pairing.reading import OwnInputs
from switchkd.signals import Compared, FromHidden, Head, Signals
from switchkd.train.step import DistillationStep

TEACHERS = {
    "one tokenizer": lambda: other_processor(tiny_processor().tokenizer, chat_template=VICUNA),
    "sentencepiece": lambda: other_processor(sentencepiece_tokenizer()),
}


def reading_of(student, teacher):
    """How the teacher reads what the student reads, as a run makes it; and the pairs of ids of first words."""
    chats = choose_format(student), choose_format(teacher)
    tokenizers, closing = (student.tokenizer, teacher.tokenizer), (chats[0].closing_id, chats[1].closing_id)
    side = spaced_side(*chats)
    first_words = None if side is None else match_ids(*tokenizers, closing, spaced=side)
    return OwnInputs(Reader(teacher), match_ids(*tokenizers, closing), first_words), first_words


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("turned", [False, True], ids=["the teacher's has it", "the student's has it"])
def test_an_answer_of_one_word_is_compared_to_its_last_token(name, turned):
    student, teacher = tiny_processor(), TEACHERS[name]()
    if turned:
        student, teacher = teacher, student
    reading, first_words = reading_of(student, teacher)
    collator = Collator(Reader(student), {TEACHER: reading})
    measured = collator.measure(row("What?", "A"))
    assert (measured.compared, measured.answers) == (2, 2)
    batch = collator([row("What?", "A"), ROWS[0]])
    aligned = batch.first_words[TEACHER]
    assert aligned.student.tolist() == [0, 2, 7]  # of "A", "A cat." and "Yes."
    assert set(aligned.student.tolist()).isdisjoint(batch.shared[TEACHER].student.tolist())
    for both in (aligned, batch.shared[TEACHER]):
        assert both.places.tolist() == both.student.tolist()
    text = [token_bytes(processor.tokenizer) for processor in (student, teacher)]
    for column, first, second in zip(
        aligned.targets.tolist(),
        batch.student.targets[aligned.student].tolist(),
        batch.readers[TEACHER].targets[aligned.reader].tolist(),
        strict=True,
    ):
        assert [ids[column] for ids in first_words] == [first, second]
        assert (b" " + text[1][second] == text[0][first]) if turned else (text[1][second] == b" " + text[0][first])


def test_ids_of_first_words_match_but_for_the_space():
    student, teacher = tiny_processor().tokenizer, sentencepiece_tokenizer()
    closing = student.eos_token_id, teacher.eos_token_id
    pairs = dict(zip(*match_ids(student, teacher, closing, spaced="teacher"), strict=True))
    assert pairs.pop(closing[0]) == closing[1]
    assert pairs.pop(student.convert_tokens_to_ids("<image>")) == teacher.convert_tokens_to_ids("<image>")
    texts = token_bytes(student), token_bytes(teacher)
    assert pairs
    assert all(texts[1][second] == b" " + texts[0][first] for first, second in pairs.items())
    # none that could be matched is left out, and turned round they are the same pairs
    assert {b" " + texts[0][first] for first in pairs} == {b" " + text for text in texts[0].values()} & set(
        texts[1].values()
    )
    turned = dict(zip(*match_ids(teacher, student, closing[::-1], spaced="student"), strict=True))
    assert {first: second for second, first in turned.items()}.items() >= pairs.items()


@pytest.mark.parametrize("tokenizer", [sentencepiece_tokenizer, lambda: tiny_processor().tokenizer])
def test_templates_that_write_no_such_space_have_no_ids_of_first_words(tokenizer):
    made = tokenizer()
    teacher = other_processor(made, chat_template=CHATML.replace("<|im_end|>", made.eos_token))
    assert spaced_side(choose_format(tiny_processor()), choose_format(teacher)) is None
    reading, _ = reading_of(tiny_processor(), teacher)
    assert Collator(Reader(tiny_processor()), {TEACHER: reading})(ROWS).first_words == {}


def test_a_tokenizer_that_puts_the_space_before_every_word_is_like_a_template_that_writes_it():
    made = wordpiece_tokenizer()
    teacher = other_processor(made, chat_template=CHATML.replace("<|im_end|>", made.eos_token))
    assert spaced_side(choose_format(tiny_processor()), choose_format(teacher)) == "teacher"


#: Student's ids and as many rows of the teacher's head for first words, and which answers these are; the rest as in `fused_shared`.
SHARED, FIRST = torch.randperm(53, generator=torch.Generator().manual_seed(5)).split([30, 23])
ORDINARY, FIRSTS = torch.tensor([0, 3, 8, 10]), torch.tensor([2, 5, 9])
DEFAULT = SwitchKD(window=16)


def with_first_words(x, method=DEFAULT):
    """Ordinary answers over 30 ids, three first words over 23 others, the rest compared with nothing."""
    head = Head(x.teacher_weight, x.teacher_bias, x.softcap)
    other = Head(x.teacher_weight.flip(0), None if x.teacher_bias is None else x.teacher_bias.flip(0), x.softcap)

    def compared(answers, ids, head, **more):
        teacher, switch = (FromHidden(h[answers], head, len(ids)) for h in (x.teacher, x.switch))
        switch = switch if "switch" in method.needs else None
        return Compared(teacher, len(ids), answers % len(ids), switch, answers, ids, answers.numpy(), **more)

    one = compared(ORDINARY, SHARED, head, first_words=compared(FIRSTS, FIRST, other))
    student = FromHidden(x.student, Head(x.weight, x.bias, x.softcap))
    return Signals(student, x.targets, torch.zeros_like(x.targets), ("sample@0",), {TEACHER: one}, {})


METHODS = [SwitchKD(window=16), SwitchKD(switch=0, window=None), SwitchKD(top_k=4), KD(beta=0.5), BiLD(), LLaVAMoD()]
LOSSES = [by_autograd(m) for m in METHODS] + [analytic(m) for m in METHODS if isinstance(m, SwitchKD)]


def test_the_places_of_answers_are_known_on_the_host_in_both_parts():
    whole = with_first_words(inputs())
    ordinary, first = whole.parts()
    (one,) = ordinary.compared.values()
    assert one.places.tolist() == one.answers.tolist() == [0, 2, 6, 7]
    (other,) = first.compared.values()
    assert (other.places, other.answers) == (None, None)
    (unknown,) = with_first_words(inputs()).compared.values()
    (other_part, _) = replace(whole, compared={TEACHER: replace(unknown, places=None)}).parts()
    assert other_part.compared[TEACHER].places is None


@pytest.mark.parametrize("number", range(len(LOSSES)))
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_fused_and_plain_loss_agree_in_any_chunks(number, softcap):
    method = (METHODS + [m for m in METHODS if isinstance(m, SwitchKD)])[number]
    x = replace(inputs(), softcap=softcap)
    batch = with_first_words(x, method)
    expected = plain_loss(by_autograd(method), batch)
    for chunk in (1, 4, TOKENS):
        actual = fused_loss(LOSSES[number], batch, chunk=chunk)
        assert actual.terms.keys() == expected.terms.keys()
        for name, value in expected.terms.items():
            torch.testing.assert_close(actual.terms[name], value, rtol=0, atol=1e-10)
        assert actual.statistics == expected.statistics
        assert (actual.answers, actual.compared) == (expected.answers, expected.compared) == (TOKENS, 7)
        for one, other in zip(gradients(actual.loss, x), gradients(expected.loss, x), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_loss_at_a_first_word_is_that_over_its_own_ids():
    """Written out, from the logits of all answers and all rows."""
    x = inputs()
    z_s = x.student @ x.weight.T + x.bias
    z_t, z_sw = (y @ x.teacher_weight.T + x.teacher_bias for y in (x.teacher, x.switch))
    align = switch = 0.0
    for answer in range(TOKENS):
        if answer in ORDINARY:
            student, rows = SHARED, torch.arange(30)
        elif answer in FIRSTS:
            student, rows = FIRST, torch.arange(50).flip(0)[:23]
        else:
            continue
        align = align + dbild(z_s[answer, student][None], z_t[answer, rows][None], window=16).sum()
        switch = switch + dbild(z_sw[answer, rows][None], z_t[answer, rows][None], window=16).sum()
    ce = cross_entropy(z_s, x.targets).sum()
    summed = fused_loss(SwitchKD(window=16).chunk_loss(), with_first_words(x), chunk=4)
    for name, value in {"ce": ce, "align": align, "switch": switch}.items():
        torch.testing.assert_close(summed.terms[name], value.detach(), rtol=1e-12, atol=0)
    expected = torch.autograd.grad(ce + align + switch, x.learned)
    for one, other in zip(gradients(summed.loss, x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_a_backward_through_a_retained_graph_gives_the_gradients_again():
    x = inputs()
    loss = fused_loss(SwitchKD(window=16).chunk_loss(), with_first_words(x), chunk=4).loss
    for one, other in zip(gradients(loss, x), gradients(loss, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.slow
def test_gradcheck():
    x = inputs(bias=False)

    def loss(student, weight, switch):
        return fused_loss(
            KD().chunk_loss(), with_first_words(replace(x, student=student, weight=weight, switch=switch))
        ).loss

    assert torch.autograd.gradcheck(loss, (x.student, x.weight, x.switch), nondet_tol=1e-12)


def test_logits_of_all_answers_at_once_are_refused():
    with pytest.raises(ValueError, match=r"take the logits of each of the `parts\(\)`"):
        with_first_words(inputs()).logits()
    whole, first = with_first_words(inputs()).parts()
    assert (len(whole.targets), len(first.targets)) == (TOKENS - 3, 3)
    two = with_first_words(inputs())
    two = replace(
        two, compared={"one": two.compared[TEACHER], "other": replace(two.compared[TEACHER], first_words=None)}
    )
    with pytest.raises(ValueError, match="for one teacher, not for one, other together"):
        two.parts()


#: Ids of first words in the pair of `test_mismatch`.
OTHERS = (list(range(1, 128, 4)), list(range(10, 42)))


def first_words_batch():
    batch = two_readers()
    aligned = batch.shared[TEACHER]
    first, rest = slice(0, None, 3), [place for place in range(len(aligned.targets)) if place % 3]
    own = aligned._replace(
        student=aligned.student[first],
        reader=aligned.reader[first],
        targets=torch.arange(len(aligned.targets[first])),
    )
    others = aligned._replace(student=aligned.student[rest], reader=aligned.reader[rest], targets=aligned.targets[rest])
    return batch._replace(shared={TEACHER: others}, first_words={TEACHER: own})


def pair_with_first_words(**options):
    made = make_pair(**options)
    return Pair(made.student, made.teacher, needs=made.needs, vocabulary=IDS, first_words=OTHERS, bridge=made.bridge)


def test_a_pair_cuts_the_rows_of_first_words_out_and_says_what_it_drops():
    pair, batch = pair_with_first_words().double(), first_words_batch()
    signals = pair(batch)
    rest, first = (part.logits().compared[TEACHER] for part in signals.parts())
    student, teacher = (
        plain_logits(pair.student.model, batch.student),
        plain_logits(pair.teacher.model, batch.readers[TEACHER]),
    )
    for logits, aligned, ids in (
        (rest, batch.shared[TEACHER], IDS),
        (first, batch.first_words[TEACHER], OTHERS),
    ):
        torch.testing.assert_close(logits.student, student[aligned.student][:, ids[0]], rtol=0, atol=1e-10)
        torch.testing.assert_close(logits.teacher, teacher[aligned.reader][:, ids[1]], rtol=0, atol=1e-10)
        assert torch.equal(logits.targets, aligned.targets)
    p = teacher.softmax(-1)
    expected = torch.cat(
        [
            1 - p[batch.shared[TEACHER].reader][:, IDS[1]].sum(-1),
            1 - p[batch.first_words[TEACHER].reader][:, OTHERS[1]].sum(-1),
        ]
    )
    torch.testing.assert_close(pair.dropped_mass(signals), expected, rtol=0, atol=1e-10)
    fused, plain = (
        DistillationStep(pair, SwitchKD(window=16), loss=loss)(batch, dropped_mass=True) for loss in ("fused", "plain")
    )
    torch.testing.assert_close(fused.loss, plain.loss, rtol=0, atol=1e-9)
    torch.testing.assert_close(fused.statistics["dropped_mass"], expected.sum(), rtol=0, atol=1e-9)
    assert fused.compared == len(rest.targets) + len(first.targets)
    # the rows of neither table are in a file of the student
    assert {name.split(".")[0] for name in pair.state_dict()} == {"student", "teacher", "bridge"}


def test_a_pair_that_was_not_told_of_first_words_refuses_them():
    with pytest.raises(ValueError, match="the pair was not told which ids these are: give it `first_words`"):
        make_pair()(first_words_batch())


def test_faults_are_looked_for_at_first_words_too():
    pair = pair_with_first_words()
    with torch.no_grad():
        pair.first_words.weight.fill_(torch.nan)
    blamed = DistillationStep(pair, SwitchKD(window=16)).not_finite(first_words_batch())
    assert blamed
    assert all(pathways == ["teacher", "switch"] for pathways in blamed.values())
