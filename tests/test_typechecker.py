"""The shape checks of the tests see every annotation, also those whose names a module imports for type checkers alone."""

import jaxtyping
import pytest
import torch

from switchkd.methods import KD, AlignKD
from switchkd.methods.llava_kd import LLaVAKD
from switchkd.models.capture import Projected
from switchkd.signals import AnswerLogits


def test_a_function_of_a_plain_module_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        AnswerLogits(torch.zeros(3), torch.zeros(3, dtype=torch.long), {}).term(torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("LLaVAKD._at_visual_tokens", lambda: LLaVAKD()._at_visual_tokens(torch.zeros(3), torch.zeros(3))),
        ("AlignKD._soft", lambda: AlignKD()._soft(torch.zeros(2, 3), torch.zeros(3, 4))),
        ("KD.token_terms", lambda: KD().token_terms({})),
        ("Method.at", lambda: KD().at("1")),
        ("Projected.of_samples", lambda: Projected().of_samples({})),
    ],
    ids=["a shape", "two shapes", "a class", "a plain type", "a class of the same module"],
)
def test_a_function_whose_names_are_imported_for_type_checkers_is_checked(function, call):
    with pytest.raises(jaxtyping.TypeCheckError, match=rf"checking the parameters of switchkd\.[\w.]*\.{function}\."):
        call()
