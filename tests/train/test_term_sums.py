"""Means over answer tokens, and over those that are compared."""

import pytest
import torch
from accelerate import Accelerator

from switchkd.losses import SummedLoss
from switchkd.train.term_sums import add_terms, means


def summed(answers, compared, knee):
    value = torch.tensor(float(answers))
    return SummedLoss(value, {"ce": value}, {"knee_teacher": torch.tensor(float(knee))}, answers, compared, answers)


@pytest.mark.parametrize(("own_inputs", "share"), [(True, 10 / 16), (False, None)])
def test_a_batch_without_a_compared_answer_does_not_lower_what_is_said_of_the_others(own_inputs, share):
    total = {}
    for one in (summed(10, 10, 50), summed(6, 0 if own_inputs else 6, 0 if own_inputs else 30)):
        add_terms(total, one, own_inputs=own_inputs)
    found = means(total, Accelerator(cpu=True))
    assert found["knee_teacher"] == 5
    assert (found["ce"], found["answer_tokens"], found.get("aligned")) == (1, 16, share)


def test_statistics_of_a_method_without_a_teacher_are_over_all_answers():
    total = {}
    add_terms(total, summed(10, 0, 50), own_inputs=False)
    assert means(total, Accelerator(cpu=True))["knee_teacher"] == 5
