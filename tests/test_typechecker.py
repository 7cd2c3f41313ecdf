"""The shape checks of the tests see every annotation, also those whose names a module imports for type checkers alone."""

import jaxtyping
import pytest
import torch
import typechecker

from switchkd.losses import forward_kl
from switchkd.methods import KD, AlignKD, Method
from switchkd.methods.llava_kd import LLaVAKD
from switchkd.models import Pathway
from switchkd.models.capture import Projected
from switchkd.pairing.bridge import resample
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
    with pytest.raises(typechecker.VIOLATIONS, match=rf"switchkd\.[\w.]*\.{function}\b"):
        call()


JAXTYPING = jaxtyping.jaxtyped.__code__.co_filename


def test_sizes_of_one_name_are_one_number_where_the_package_has_a_name_of_its_own_for_the_annotation():
    """`FeatureGrid` and `Features` are such names: that of a function with them alone is a scope of sizes."""
    for function in (forward_kl, resample, Pathway.see):
        assert function.__code__.co_filename == JAXTYPING
    assert Method.at.__code__.co_filename == typechecker.__file__
