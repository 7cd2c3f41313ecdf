"""The fused loss where teacher and student share some of their ids, at some of the answer tokens: equal to the plain one."""

from dataclasses import replace

import pytest
import torch
from fused_cases import ROWS, TOKENS, analytic, by_autograd, gradients, inputs
from switchkd.types import Head, Hidden

from switchkd.losses import cross_entropy, dbild, fused_loss, plain_loss
from switchkd.losses.chunks import AutogradTerms, CrossEntropyDBiLD
from switchkd.methods import KD, SwitchKD

#: Places of the compared answers (none in the second chunk of four), the student's ids, and as many rows of the teacher's head.
COMPARED = torch.tensor([0, 2, 3, 8, 10])
ALL = frozenset({"student", "teacher", "switch"})
IDS = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))[:30]


def hidden(x, compared=COMPARED, ids=IDS, needs=ALL):
    at = slice(None) if compared is None else compared
    vocabulary = 47 if ids is None else len(ids)
    head = Head(x.teacher_weight[:vocabulary], x.teacher_bias[:vocabulary], x.softcap)
    switch = x.switch[at] if "switch" in needs else None
    return Hidden(x.student, Head(x.weight, x.bias, x.softcap), vocabulary, x.teacher[at], switch, head, compared, ids)


def fused(loss, x, h, chunk):
    return fused_loss(
        loss, x.targets, h.student, h.student_head, h.teacher, h.switch, h.teacher_head,
        vocabulary=h.vocabulary, compared=h.compared, ids=h.ids, chunk=chunk,
    )  # fmt: skip


METHODS = [SwitchKD(window=16), SwitchKD(align=0.3, switch=2.0, window=None), SwitchKD(switch=0), KD(beta=0.5)]
LOSSES = [(m, by_autograd(m)) for m in METHODS] + [(m, analytic(m)) for m in METHODS if isinstance(m, SwitchKD)]


@pytest.mark.parametrize(("method", "loss"), LOSSES, ids=[f"{m}-{type(loss).__name__}" for m, loss in LOSSES])
@pytest.mark.parametrize(
    ("compared", "ids"), [(COMPARED, IDS), (COMPARED, None), (None, IDS)], ids=["both", "tokens", "ids"]
)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_equal_to_the_plain_loss_in_any_chunks(method, loss, compared, ids, softcap):
    x = replace(inputs(), softcap=softcap)
    h = hidden(x, compared, ids, method.needs)
    expected = plain_loss(AutogradTerms(method.terms, method.statistics), x.targets, h)
    their_gradients = gradients(expected.loss, x)
    for chunk in (1, 4, TOKENS):
        found = fused(loss, x, hidden(x, compared, ids, method.needs), chunk)
        for name, value in expected.terms.items():
            torch.testing.assert_close(found.terms[name], value, rtol=0, atol=1e-10)
        for name, value in found.statistics.items():
            assert value == expected.statistics[name]
        for ours, theirs in zip(gradients(found.loss, x), their_gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_the_plain_loss_compares_the_same_ids_at_the_same_tokens():
    """Written out by hand, from the logits of all tokens and all ids."""
    x = inputs()
    h = hidden(x)
    z_s = x.student @ x.weight.T + x.bias
    z_t, z_sw = (y @ x.teacher_weight.T + x.teacher_bias for y in (x.teacher, x.switch))
    found = plain_loss(AutogradTerms(SwitchKD(window=16).terms), x.targets, h).terms
    assert found["ce"].item() == pytest.approx(cross_entropy(z_s, x.targets).sum().item())
    ours = torch.stack([z_s[token, IDS] for token in COMPARED])
    theirs = torch.stack([z_t[token, : len(IDS)] for token in COMPARED])
    switched = torch.stack([z_sw[token, : len(IDS)] for token in COMPARED])
    assert found["align"].item() == pytest.approx(dbild(ours, theirs, window=16).sum().item())
    assert found["switch"].item() == pytest.approx(dbild(switched, theirs, window=16).sum().item())


@pytest.mark.parametrize("loss", [analytic(SwitchKD()), by_autograd(SwitchKD())], ids=["analytic", "autograd"])
def test_where_nothing_is_compared_the_cross_entropy_is_left(loss):
    x = inputs()
    h = hidden(x, torch.tensor([], dtype=torch.long))
    found = fused(loss, x, h, 4)
    alone = fused_loss(CrossEntropyDBiLD.cross_entropy_alone(), x.targets, h.student, h.student_head)
    torch.testing.assert_close(found.loss, alone.loss)
    assert found.terms["align"] == found.terms["switch"] == 0


def test_ids_and_rows_of_unequal_number_are_refused():
    x = inputs()
    h = replace(hidden(x), ids=IDS[:-1])
    with pytest.raises(ValueError, match="29 of the student's ids are given for 30 of the teacher's"):
        fused(by_autograd(KD()), x, h, 4)
