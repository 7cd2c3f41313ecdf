"""Terms on what is inside both models, added to any method."""

import functools
from dataclasses import replace

import pytest
import torch
from inner_cases import make_pair, reached, signals_of
from tiny_models import tiny_batch

from switchkd.methods import METHODS, SFT, AlignKD, FeatureKD, LLaVAKD, SwitchKD
from switchkd.methods.plus import SAMPLE_TERMS
from switchkd.recipe.saving import recipe_to_dict
from switchkd.recipe.schema import build_recipe
from switchkd.train.step import DistillationStep
from switchkd.typed_fields import RecipeError

#: Small enough for the tiny vocabulary.
WINDOW = {"window": 32}


def recipe(method, *flags):
    plain = {"teacher": {"path": "T"}, "student": {"path": "S"}, "data": {"train": "D"}, "train": {"output": "O"}}
    return build_recipe(plain | {"method": method}, "mine.yaml", flags)


def test_what_can_be_added():
    expected = [
        "features",
        "visual",
        "relation",
        "soft",
        "attention",
        "projected",
        "focus",
        "matched",
        "affinity",
        "looks",
        "instructed",
    ]
    assert list(SAMPLE_TERMS) == expected
    for kind in METHODS.values():  # no term of a method is called as one that can be added to it
        assert not set(SAMPLE_TERMS) & {"ce", "knee", *kind.answer_weights}


def step_of(method):
    torch.manual_seed(5)  # of learned maps
    return DistillationStep(make_pair(method), method)


def terms_of(method):
    sums = step_of(method)(tiny_batch(images=(1, 2, 0)))
    terms = {name: value.item() for name, value in sums.terms.items()}
    assert sums.loss.item() == pytest.approx(sum(terms.values()), abs=1e-10)
    return terms


@pytest.mark.parametrize("method", [SFT(), SwitchKD(**WINDOW), LLaVAKD(visual=0, relation=0)], ids=lambda one: one.name)
def test_the_loss_is_the_sum_of_the_method_and_of_the_other_methods_terms(method):
    added = {"features": 0.5, "projected": 3.0, "attention": 0.0625}
    others = (FeatureKD(align=0, features=0.5), AlignKD(soft=0, attention=0.0625, projected=3.0, focus=0))
    if not isinstance(method, LLaVAKD):
        added |= {"relation": 2.0, "visual": 0.25}
        others += (LLaVAKD(answers=0, visual=0.25, relation=2.0),)
    expected = terms_of(method)
    for other in others:
        expected |= {name: value for name, value in terms_of(other).items() if name != "ce"}
    # attention weights are kept by eager attention alone, whose softmax is in float32
    assert terms_of(method.plus(**added)) == pytest.approx(expected, rel=1e-6)


@functools.cache
def of_its_own_method(term):
    return terms_of(SAMPLE_TERMS[term].of_samples_alone(**{term: 0.75}))[term]


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_every_term_can_be_added_to_every_method_in_a_recipe(name):
    """One by one: it has the value that it has in its own method, nothing else changes, and it trains something."""
    knobs = {"window": 32} if name in ("switch_kd", "feature_kd") else {}
    plain = recipe({"name": name, **knobs}).method
    alone = terms_of(plain)
    for term in SAMPLE_TERMS:
        made = recipe({"name": name, **knobs, term: 0.75}).method
        if term in plain.sample_weights:
            assert made == replace(plain, **{term: 0.75})
            continue
        assert made == plain.plus(**{term: 0.75})
        # attention weights are kept by eager attention alone, whose softmax is in float32
        assert terms_of(made) == pytest.approx(alone | {term: of_its_own_method(term)}, rel=1e-5), term
        pair = step_of(made).pair
        assert reached(pair, made.sample_terms(signals_of(pair), pair.learned)[term].sum()), term


def test_what_is_learned_is_that_of_every_method():
    method = AlignKD(soft=0, attention=0, focus=0).plus(features=1.0)
    pair = step_of(method).pair
    assert {name.partition(".")[0] for name in pair.learned.state_dict()} == {"method"}
    terms = method.sample_terms(signals_of(pair), pair.learned)
    assert list(terms) == ["projected", "features"]
    assert reached(pair, terms["features"].sum()) == {"vision"}
    pair = step_of(SFT().plus(projected=1.0)).pair
    assert {name.partition(".")[0] for name in pair.learned.state_dict()} == {"align_kd"}
    assert "learned" in reached(
        pair, SFT().plus(projected=1.0).sample_terms(signals_of(pair), pair.learned)["projected"].sum()
    )


def test_weights_that_change_along_a_stage_change():
    method = SwitchKD(switch=2.0, switch_warmup=0.5, **WINDOW).plus(features=1.0)
    assert method.at(0.25).method.switch == 1.0
    assert method.at(0.25).weights == method.weights == {"features": 1.0}
    assert method.directions == {"align": "reverse", "switch": "reverse"}
    assert SFT().plus(soft=1.0).directions == {"soft": "forward"}


@pytest.mark.parametrize(
    ("method", "weights", "message"),
    [
        (SwitchKD(), {"feature": 1.0}, "switch_kd: there is no term 'feature' to add: there are features, visual"),
        (FeatureKD(), {"features": 1.0}, "feature_kd: features is a weight of its own"),
        (SFT(), {"visual": -1.0}, "sft: visual must be positive, got -1.0"),
        (SFT(), {"visual": float("nan")}, "weights.visual: must be finite, got nan"),
    ],
)
def test_what_cannot_be_added_is_refused(method, weights, message):
    with pytest.raises(ValueError, match=message):
        method.plus(**weights)


def test_terms_are_added_one_after_the_other_as_at_once():
    at_once = SwitchKD(**WINDOW).plus(features=0.5, projected=3.0)
    assert SwitchKD(**WINDOW).plus(features=0.5).plus(projected=3.0) == at_once
    assert SwitchKD(**WINDOW).weighted().plus(features=0.5).plus(projected=3.0) == at_once.weighted()
    assert build_recipe(recipe_to_dict(recipe({"name": "sft", "features": 1.0})), "saved.yaml").method == SFT().plus(
        features=1.0
    )


@pytest.mark.parametrize(
    ("method", "weights", "message"),
    [
        (SwitchKD().plus(features=1.0), {"features": 5.0}, r"switch_kd \+ features: features is there already"),
        (LLaVAKD().plus(features=1.0), {"visual": 5.0}, "llava_kd: visual is a weight of its own"),
        (LLaVAKD().weighted().plus(features=1.0), {"visual": 5.0}, "llava_kd: visual is a weight of its own"),
    ],
)
def test_no_term_is_added_twice(method, weights, message):
    with pytest.raises(ValueError, match=message):
        method.plus(**weights)


def test_a_term_that_a_method_has_and_does_not_declare_is_not_lost():
    class Own(SFT):
        needs = FeatureKD().needs

        def sample_terms(self, signals, learned):
            return {"features": torch.zeros(3)}

    with pytest.raises(ValueError, match="sft: features is a term of its own"):
        terms_of(Own().plus(features=1.0))


def test_a_recipe_adds_a_term_in_its_line():
    made = recipe({"name": "switch_kd", "switch": 0.5, "features": 2})
    assert made.method == SwitchKD(switch=0.5).plus(features=2.0)
    assert made.method.label == "switch_kd + features"
    assert build_recipe(recipe_to_dict(made), "saved.yaml") == made
    assert replace(made, method=SFT().plus(features=2)).method.weights == {"features": 2.0}  # checked as in a file
    (stage,) = made.resolved_stages()
    assert stage.method == made.method
    assert recipe("sft", "--method.features", "1.5").method == SFT().plus(features=1.5)
    assert recipe({"name": "switch_kd", "features": 0}).method == SwitchKD()
    assert recipe({"name": "feature_kd", "features": 3.0}).method == FeatureKD(features=3.0)  # its own
    stages = [{"name": "first", "method": {"features": 0.0}}, {"name": "second"}]
    tree = recipe_to_dict(made) | {"stages": stages}
    assert [one.method.label for one in build_recipe(tree, "two.yaml").resolved_stages()] == [
        "switch_kd",
        made.method.label,
    ]


def test_what_a_recipe_cannot_add_is_said_where_it_stands():
    with pytest.raises(RecipeError, match=r"mine.yaml: method: switch_kd: visual must be positive, got -1.0"):
        recipe({"name": "switch_kd", "visual": -1})
    with pytest.raises(RecipeError, match=r"--method.features: must be a number, got 'much'"):
        recipe("sft", "--method.features", "much")
    with pytest.raises(RecipeError, match=r"`method` has no `featurs`; did you mean"):
        recipe({"name": "switch_kd", "featurs": 1.0})


def test_a_method_of_another_package_can_be_added_to():
    assert recipe({"name": "examples.own_method:TopKD", "features": 1.0}).method.label.endswith(" + features")
