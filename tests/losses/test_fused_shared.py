"""The fused loss where a teacher shares some ids, at some answers: equal to the plain one, also for several teachers."""

from dataclasses import dataclass, replace

import pytest
import torch
from fused_cases import ROWS, TOKENS, VOCABULARY, analytic, by_autograd, gradients, inputs, signals

from switchkd.batch import TEACHER
from switchkd.losses import AutogradTerms, CrossEntropyDBiLD, cross_entropy, dbild, forward_kl, fused_loss, plain_loss
from switchkd.methods import KD, SFT, SwitchKD
from switchkd.signals import Logits, TokenTerm

#: Places of the compared answers (none in the second chunk of four), and the student's ids for as many rows of the teacher's head.
COMPARED = torch.tensor([0, 2, 3, 8, 10])
IDS = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))[:30]
NONE = torch.tensor([], dtype=torch.long)

METHODS = [SwitchKD(window=16), SwitchKD(align=0.3, switch=2.0, window=None), SwitchKD(switch=0), KD(beta=0.5)]
LOSSES = [(m, by_autograd(m)) for m in METHODS] + [(m, analytic(m)) for m in METHODS if isinstance(m, SwitchKD)]
each_loss = pytest.mark.parametrize(
    ("method", "loss"), LOSSES, ids=[f"{m}-{type(loss).__name__}" for m, loss in LOSSES]
)
each_comparison = pytest.mark.parametrize(
    ("answers", "ids"), [(COMPARED, IDS), (COMPARED, None), (None, IDS)], ids=["both", "answers", "ids"]
)


def assert_same(actual, expected, x):
    """The same loss, terms, statistics and gradients."""
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-10)
    assert actual.terms.keys() == expected.terms.keys()
    for name, value in expected.terms.items():
        torch.testing.assert_close(actual.terms[name], value, rtol=0, atol=1e-10)
    assert actual.statistics == expected.statistics
    assert (actual.answers, actual.compared) == (expected.answers, expected.compared)
    for one, other in zip(gradients(actual.loss, x), gradients(expected.loss, x), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


@each_loss
@each_comparison
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equal_to_the_plain_loss_in_any_chunks(method, loss, answers, ids, softcap):
    x = replace(inputs(), softcap=softcap)
    batch = signals(method, x, answers=answers, ids=ids)
    for chunk in (1, 4, TOKENS):
        assert_same(fused_loss(loss, batch, chunk=chunk), plain_loss(by_autograd(method), batch), x)


def test_the_plain_loss_compares_the_same_ids_at_the_same_answers():
    """Written out by hand, from the logits of all answers and all ids."""
    x, method = inputs(), SwitchKD(window=16)
    z_s = x.student @ x.weight.T + x.bias
    z_t, z_sw = (y @ x.teacher_weight.T + x.teacher_bias for y in (x.teacher, x.switch))
    summed = plain_loss(by_autograd(method), signals(method, x, answers=COMPARED, ids=IDS))
    assert (summed.answers, summed.compared) == (TOKENS, len(COMPARED))
    assert summed.terms["ce"].item() == pytest.approx(cross_entropy(z_s, x.targets).sum().item())
    student = torch.stack([z_s[token, IDS] for token in COMPARED])
    teacher = torch.stack([z_t[token, : len(IDS)] for token in COMPARED])
    switch = torch.stack([z_sw[token, : len(IDS)] for token in COMPARED])
    assert summed.terms["align"].item() == pytest.approx(dbild(student, teacher, window=16).sum().item())
    assert summed.terms["switch"].item() == pytest.approx(dbild(switch, teacher, window=16).sum().item())


def test_targets_of_the_compared_answers_are_columns_of_the_shared_ids():
    x, method = inputs(), KD()
    columns = torch.tensor([4, 29, 0, 11, 7])
    batch = signals(method, x, answers=COMPARED, ids=IDS)
    batch = replace(batch, compared={TEACHER: replace(batch.compared[TEACHER], targets=columns)})

    def terms(logits):
        compared = logits.compared[TEACHER]
        return {"shared": compared.term(cross_entropy(compared.student, compared.targets))}

    z_s = x.student @ x.weight.T + x.bias
    expected = sum(
        z_s[token, IDS].logsumexp(0) - z_s[token, IDS[column]]
        for token, column in zip(COMPARED.tolist(), columns.tolist(), strict=True)
    )
    for summed in (plain_loss(AutogradTerms(terms), batch), fused_loss(AutogradTerms(terms), batch, chunk=4)):
        torch.testing.assert_close(summed.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [analytic(SwitchKD()), by_autograd(SwitchKD())], ids=["analytic", "autograd"])
def test_where_nothing_is_compared_the_cross_entropy_is_left(loss):
    x = inputs()
    summed = fused_loss(loss, signals(SwitchKD(), x, answers=NONE, ids=IDS), chunk=4)
    alone = fused_loss(CrossEntropyDBiLD(align=0, switch=0), signals(SFT(), x))
    torch.testing.assert_close(summed.loss, alone.loss)
    assert summed.terms["align"] == summed.terms["switch"] == 0
    assert (summed.answers, summed.compared) == (TOKENS, 0)


def test_ids_and_rows_of_unequal_number_are_refused():
    batch = signals(KD(), inputs(), answers=COMPARED, ids=IDS)
    batch = replace(batch, compared={TEACHER: replace(batch.compared[TEACHER], ids=IDS[:-1])})
    with pytest.raises(ValueError, match="29 of the student's ids are given for 30 of the teacher's"):
        fused_loss(by_autograd(KD()), batch, chunk=4)


@dataclass(frozen=True)
class Stored:
    """`Logits` that stand in memory, as if they had been read from a file."""

    values: torch.Tensor

    def __len__(self):
        return len(self.values)

    def rows(self, part):
        return self.values[part].clone()


@each_loss
@pytest.mark.parametrize(("answers", "ids"), [(None, None), (COMPARED, IDS)], ids=["all", "some"])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_stored_teacher_is_worth_a_live_one(method, loss, answers, ids, softcap):
    x = replace(inputs(), softcap=softcap)
    live = signals(method, x, answers=answers, ids=ids)
    teacher = Stored(live.compared[TEACHER].teacher.rows(slice(None)))
    assert isinstance(teacher, Logits)
    stored = replace(live, compared={TEACHER: replace(live.compared[TEACHER], teacher=teacher)})
    for chunk in (1, 4, TOKENS):
        assert_same(fused_loss(loss, stored, chunk=chunk), fused_loss(loss, live, chunk=chunk), x)
    assert_same(plain_loss(by_autograd(method), stored), plain_loss(by_autograd(method), live), x)


def test_a_store_of_too_few_answers_is_refused():
    batch = signals(KD(), inputs(), answers=COMPARED, ids=IDS)
    stored = replace(batch.compared[TEACHER], teacher=Stored(torch.zeros(4, len(IDS))))
    with pytest.raises(ValueError, match="5 of the student's 11, but teacher has 4"):
        fused_loss(by_autograd(KD()), replace(batch, compared={TEACHER: stored}))


def forward_kl_of_each(logits):
    """A method of several teachers, as a user may write one."""
    terms = {"ce": TokenTerm(cross_entropy(logits.student, logits.targets))}
    for name, one in logits.compared.items():
        terms[name] = one.term(forward_kl(one.student, one.teacher))
    return terms


#: Which of the first teacher's answers and ids are compared, and which of the second's.
FIRST, SECOND = (COMPARED, None), (torch.tensor([1, 2, 5, 6, 7, 9]), IDS)


@pytest.mark.parametrize("stored", [False, True], ids=["live", "stored"])
@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
def test_two_teachers_teach_as_much_as_each_alone(chunk, stored):
    """The cross-entropy, which both calls have, is counted once."""
    x, method = inputs(), SwitchKD(window=16)
    second = replace(
        x,
        teacher=x.teacher.flip(0),
        teacher_weight=x.teacher_weight.flip(0),
    )
    one, other = (signals(method, y, answers=answers, ids=ids) for y, (answers, ids) in ((x, FIRST), (second, SECOND)))
    if stored:
        logits = other.compared[TEACHER].teacher.rows(slice(None))
        other = replace(other, compared={TEACHER: replace(other.compared[TEACHER], teacher=Stored(logits))})
    both = replace(one, compared={"first": one.compared[TEACHER], "second": other.compared[TEACHER]})
    ce = fused_loss(CrossEntropyDBiLD(align=0, switch=0), signals(SFT(), x))
    alone = [fused_loss(method.chunk_loss(), batch, chunk=chunk) for batch in (one, other)]
    together = fused_loss(method.chunk_loss(), both, chunk=chunk)
    for name in ("align", "switch"):
        torch.testing.assert_close(together.terms[name], sum(a.terms[name] for a in alone), rtol=1e-12, atol=0)
    torch.testing.assert_close(together.terms["ce"], ce.loss, rtol=1e-12, atol=0)
    assert together.statistics == {
        name: alone[0].statistics[name] + alone[1].statistics[name] for name in alone[0].statistics
    }
    assert (together.answers, together.compared) == (TOKENS, len(FIRST[0]) + len(SECOND[0]))
    parts = [gradients(summed.loss, x) for summed in (*alone, ce)]
    for whole, (a, b, once) in zip(gradients(together.loss, x), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(whole, a + b - once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 4, TOKENS])
def test_terms_of_two_teachers_by_autograd(chunk):
    x = inputs()
    one, other = (signals(KD(), x, answers=answers, ids=ids) for answers, ids in (FIRST, SECOND))
    both = replace(one, compared={"first": one.compared[TEACHER], "second": other.compared[TEACHER]})
    loss = AutogradTerms(forward_kl_of_each)
    assert_same(fused_loss(loss, both, chunk=chunk), plain_loss(loss, both), x)
    for name, batch in (("first", one), ("second", other)):
        alone = plain_loss(by_autograd(KD()), batch).terms["kd"]
        torch.testing.assert_close(fused_loss(loss, both, chunk=chunk).terms[name], alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [analytic(SwitchKD()), by_autograd(SwitchKD())], ids=["analytic", "autograd"])
def test_answers_and_ids_that_are_all_there_are_change_nothing(loss):
    x = inputs()
    every = signals(SwitchKD(), x, answers=torch.arange(TOKENS), ids=torch.arange(VOCABULARY))
    assert_same(fused_loss(loss, every, chunk=4), fused_loss(loss, signals(SwitchKD(), x), chunk=4), x)
