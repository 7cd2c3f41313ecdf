"""What a user reads when the inputs are wrong: each message, for each loss that can raise it."""

import re

import pytest
import torch

from switchkd.losses import bild, cross_entropy, dbild, forward_kl, jsd, knee, reverse_kl

pytestmark = pytest.mark.usefixtures("unchecked_shapes")

GOOD = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
PAIRED = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": lambda student, teacher, **kw: jsd(student, teacher, beta=0.5, **kw),
    "bild": bild,
    "dbild": dbild,
}
each_paired = pytest.mark.parametrize("loss", PAIRED.values(), ids=PAIRED)


def broken(value: float) -> torch.Tensor:
    logits = GOOD.clone()
    logits[2, 7] = logits[3, 1] = value
    return logits


def raises(error: type[Exception], message: str):
    return pytest.raises(error, match=re.escape(message))


@each_paired
@pytest.mark.parametrize(
    ("student", "teacher", "error", "message"),
    [
        (GOOD[0, 0], GOOD, ValueError, "student must have the shape [..., vocab], got the single number "),
        (GOOD[0], GOOD, ValueError, "the same shape [..., vocab], got [10] and [4, 10]: compare the same"),
        (GOOD, GOOD[None], ValueError, "the same shape [..., vocab], got [4, 10] and [1, 4, 10]: compare the same"),
        (
            GOOD.view(2, 2, 10),
            GOOD,
            ValueError,
            "the same shape [..., vocab], got [2, 2, 10] and [4, 10]: compare the same",
        ),
        (
            broken(torch.nan).view(2, 2, 10),
            GOOD,
            ValueError,
            "student must be finite: nan at position (1, 0), token 7 (2 of 40 values",
        ),
        (broken(torch.nan)[2], GOOD[2], ValueError, "student must be finite: nan at token 7 (1 of 10 values"),
        (GOOD, GOOD[:, :9], ValueError, "the same shape [..., vocab], got [4, 10] and [4, 9]: compare the same"),
        (GOOD[:3], GOOD, ValueError, "the same shape [..., vocab], got [3, 10] and [4, 10]: compare the same"),
        (GOOD.long(), GOOD, TypeError, "student must be float16, bfloat16, float32 or float64, got torch.int64"),
        (GOOD, GOOD.cfloat(), TypeError, "teacher must be float16, bfloat16, float32 or float64, got torch.complex64"),
        (broken(torch.nan), GOOD, ValueError, "student must be finite: nan at position 2, token 7 (2 of 40 values"),
        (GOOD, broken(torch.inf), ValueError, "teacher must be finite: inf at position 2, token 7 (2 of 40 values"),
        (GOOD, broken(-torch.inf), ValueError, "teacher must be finite: -inf at position 2, token 7 (2 of 40 values"),
        (GOOD, GOOD.clone().requires_grad_(), ValueError, "teacher requires grad, but the target of a distillation"),
    ],
)
def test_logits(loss, student, teacher, error, message):
    with raises(error, message):
        loss(student, teacher)


@each_paired
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature(loss, temperature):
    with raises(ValueError, f"temperature must be positive and finite, got {temperature}"):
        loss(GOOD, GOOD, temperature=temperature)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dbild(GOOD, GOOD, window=1), ValueError, "window must be at least 2 (two logits make the first pair), got 1"),
        (lambda: dbild(GOOD, GOOD, top_k=1), ValueError, "top_k must be at least 2 (two logits make the first pair), got 1"),
        (lambda: dbild(GOOD, GOOD, direction="both"), ValueError, "direction must be forward or reverse, got 'both'"),
        (lambda: dbild(GOOD, GOOD, min_k=1), ValueError, "min_k must be at least 2"),
        (lambda: dbild(GOOD[:, :1], GOOD[:, :1]), ValueError, "the vocabulary must be at least 2"),
        (lambda: bild(GOOD, GOOD, top_k=1), ValueError, "top_k must be at least 2"),
        (lambda: bild(GOOD[:, :1], GOOD[:, :1]), ValueError, "the vocabulary must be at least 2"),
        (lambda: knee(GOOD, window=0), ValueError, "window must be at least 2"),
        (lambda: knee(GOOD, min_k=0), ValueError, "min_k must be at least 2"),
        (lambda: knee(GOOD[:, :1]), ValueError, "the vocabulary must be at least 2"),
        (lambda: knee(GOOD[0, 0]), ValueError, "logits must have the shape [..., vocab], got the single number"),
        (lambda: knee(GOOD.int()), TypeError, "logits must be float16"),
        (lambda: knee(broken(torch.nan)), ValueError, "logits must be finite: nan at position 2, token 7"),
        (lambda: jsd(GOOD, GOOD, beta=1.5), ValueError, "beta must be between 0 (forward KL) and 1 (reverse KL), got 1.5"),
        (lambda: jsd(GOOD, GOOD, beta=-0.1), ValueError, "beta must be between 0 (forward KL) and 1 (reverse KL), got -0.1"),
        (lambda: cross_entropy(GOOD[0, 0], LABELS), ValueError, "logits must have the shape [..., vocab], got the single number"),
        (lambda: cross_entropy(GOOD[0], LABELS), ValueError, "targets must have the shape [] of the logits' positions, got [4]"),
        (lambda: cross_entropy(GOOD.view(2, 2, 10), LABELS), ValueError, "the shape [2, 2] of the logits' positions, got [4]"),
        (lambda: cross_entropy(GOOD.view(2, 2, 10), LABELS.view(2, 2) + 7), ValueError, "from 0 to 9: 10 at position (1, 1). Losses"),
        (lambda: cross_entropy(GOOD[0], LABELS[0] - 1), ValueError, "from 0 to 9: -1. Losses"),
        (lambda: cross_entropy(broken(torch.inf), LABELS), ValueError, "logits must be finite: inf at position 2"),
        (lambda: cross_entropy(GOOD, LABELS[:3]), ValueError, "shape [4] of the logits' positions, got [3]"),
        (lambda: cross_entropy(GOOD, LABELS.float()), TypeError, "targets must be integers, got torch.float32"),
        (lambda: cross_entropy(GOOD, LABELS + 7), ValueError, "targets must be ids from 0 to 9: 10 at position 3"),
        (
            lambda: cross_entropy(GOOD, torch.tensor([0, -100, 2, 3])),
            ValueError,
            "targets must be ids from 0 to 9: -100 at position 1. Losses know no ignored label",
        ),
    ],
)  # fmt: skip
def test_settings_and_targets(call, error, message):
    with raises(error, message):
        call()


@each_paired
def test_large_finite_half_precision_logits_are_accepted(loss):
    # Their sum overflows, they do not.
    logits = torch.full((2, 50), 60000.0, dtype=torch.float16)
    assert loss(logits, logits).tolist() == [0, 0]


def test_shapes_are_checked_while_tests_run():
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(jaxtyping.TypeCheckError):
        forward_kl(GOOD, GOOD[:, :9])
