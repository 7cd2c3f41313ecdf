"""Weights of answer tokens as an option of every method: `method: {name: kd, weights: visual}`."""

from dataclasses import replace

import pytest
import torch
from caches import recipe_of
from cases import open_tiny
from fused_cases import gradients, inputs, signals
from inner_cases import make_pair, signals_of

from switchkd.batch import TEACHER
from switchkd.doctor.check_directions import directions
from switchkd.doctor.samples import Examined
from switchkd.losses import AutogradTerms, CrossEntropyDBiLD, fused_loss, plain_loss
from switchkd.methods import (
    EMKD,
    KD,
    METHODS,
    SFT,
    AlignKD,
    AlignTI,
    BiLD,
    CompoDistill,
    FeatureKD,
    LLaVAKD,
    LLaVAMoD,
    SwitchKD,
)
from switchkd.names import VisualWeights
from switchkd.recipe.saving import recipe_to_dict
from switchkd.recipe.schema import build_recipe
from switchkd.signals import AnswerLogits, ComparedLogits
from switchkd.typed_fields import RecipeError

WINDOW = {"window": 32}
#: Every method that compares answers.
COMPARING = [KD(), BiLD(), SwitchKD(**WINDOW), SwitchKD(align=0, **WINDOW), FeatureKD(**WINDOW), LLaVAKD(), LLaVAMoD()]
COMPARING += [EMKD(), CompoDistill(), AlignTI(), KD().plus(features=1.0)]
#: Those whose fused gradients are written out, by torch, and one for which autograd finds them.
FUSED = [SwitchKD(**WINDOW), SwitchKD(top_k=4), SwitchKD(softmax="row", t_squared=True, **WINDOW), BiLD(top_k=4)]


def recipe(method, *flags, **sections):
    plain = {"teacher": {"path": "T"}, "student": {"path": "S"}, "data": {"train": "D"}, "train": {"output": "O"}}
    return build_recipe(plain | {"method": method} | sections, "mine.yaml", flags)


def weighing(method, x, answers=None):
    """Signals whose compared answers weigh 0, ¼, ½ …"""
    found = signals(method, x, answers=answers)
    one = found.compared[TEACHER]
    steps = torch.arange(len(one.targets)).double()
    return replace(found, compared={TEACHER: replace(one, weights=steps / 4, advantage=steps / 8)})


def test_every_method_that_compares_answers_is_among_them():
    assert {type(method.core) for method in COMPARING} == set(METHODS.values()) - {SFT, AlignKD}


@pytest.mark.parametrize("method", COMPARING, ids=lambda one: one.label)
def test_every_comparison_is_multiplied_by_the_weight_of_its_answer(method):
    pair = make_pair(method.weighted(VisualWeights(share=0.5)))
    logits = signals_of(pair).logits()
    plain, weighed = method.token_terms(logits), method.weighted().token_terms(logits)
    weights = logits.compared[TEACHER].weights
    assert weighed.keys() == plain.keys()
    assert torch.equal(weighed["ce"].values, plain["ce"].values)
    for name in plain.keys() - {"ce"}:
        torch.testing.assert_close(weighed[name].values, weights * plain[name].values)
    assert (weights != 1).any()


def test_hand_computed():
    # Three answers, of which the first and the last are compared and weigh 2 and ½. p_S = (½, ½); p_T = (¾, ¼) and (½, ½):
    # KL(p_T‖p_S) = ¾ log 3/2 + ¼ log ½, and 0.
    whole = torch.zeros(3, 2).double()
    teacher = torch.tensor([[3.0, 1.0], [5.0, 5.0]]).double().log()
    answers, targets = torch.tensor([0, 2]), torch.tensor([0, 1, 0])
    weights = torch.tensor([2.0, 0.5]).double()
    one = ComparedLogits(whole, teacher, None, targets[answers], answers, None, weights, weights - 0.5)
    logits = AnswerLogits(whole, targets, {TEACHER: one})
    method = KD().weighted()
    terms = method.token_terms(logits)
    divergence = 0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log()
    assert terms["kd"].values.tolist() == pytest.approx([2 * divergence.item(), 0.0], abs=1e-7)
    assert terms["kd"].answers is answers
    assert terms["ce"].values.tolist() == pytest.approx([torch.tensor(2.0).log().item()] * 3)
    assert method.statistics(logits)["visual_advantage"].values.tolist() == [1.5, 0.0]


def test_a_term_that_names_all_answers_weighs_those_that_are_not_compared_by_one():
    class All(KD):
        def token_terms(self, logits):
            return {"all": logits.term(torch.ones(len(logits.targets)).double())}

    found = weighing(KD(), inputs(), answers=torch.tensor([1, 4, 6])).logits()
    values = All().weighted().token_terms(found)["all"].values
    assert values.tolist() == [1, 0, 1, 1, 0.25, 1, 0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("method", FUSED, ids=str)
@pytest.mark.parametrize("answers", [None, torch.tensor([0, 3, 4, 9])], ids=["all", "some"])
@pytest.mark.parametrize("chunk", [None, 4])
def test_fused_and_plain_agree_in_values_and_gradients(method, answers, chunk):
    method, found = method.weighted(), []
    for fused in (True, False):
        x = inputs()
        known = weighing(method, x, answers)
        if fused:
            sums = fused_loss(method.chunk_loss(), known, chunk=chunk)
        else:
            sums = plain_loss(AutogradTerms(method.token_terms, method.statistics), known)
        found.append((sums, gradients(sums.loss, x)))
    (one, its), (other, others) = found
    assert {name: value.item() for name, value in one.terms.items()} == pytest.approx(
        {name: value.item() for name, value in other.terms.items()}, rel=1e-12
    )
    assert {name: value.item() for name, value in one.statistics.items()} == pytest.approx(
        {name: value.item() for name, value in other.statistics.items()}, rel=1e-12
    )
    assert "visual_advantage" in one.statistics
    for ours, theirs in zip(its, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_gradcheck():
    x = inputs(tokens=3, bias=False)
    method = SwitchKD(**WINDOW).weighted()

    def total(student, switch):
        known = weighing(method, replace(x, student=student, switch=switch))
        terms = method.token_terms(known.logits())
        return torch.stack([term.values.sum() for term in terms.values()]).sum()

    assert torch.autograd.gradcheck(total, (x.student, x.switch))


def test_kernels_are_told_to_leave_weights_to_torch():
    method = SwitchKD(**WINDOW).weighted()
    loss = method.chunk_loss()
    assert isinstance(loss, CrossEntropyDBiLD)
    with pytest.raises(ValueError, match="cannot compute this loss: "):
        replace(loss, kernels="triton")(weighing(method, inputs()).logits(), student=None, switch=False)


def test_what_it_is_made_of_is_handed_on():
    inner = SwitchKD(switch=2.0, switch_warmup=0.5, **WINDOW)
    method = inner.weighted()
    assert method.needs == inner.needs | {VisualWeights()}
    assert method.directions == inner.directions
    assert method.at(0.25).core.switch == 1.0
    assert method.at(0.25).weights == method.weights
    assert method.label == "switch_kd, visual weights"
    every_other = SwitchKD(align=0, switch_every=2, **WINDOW).weighted()
    assert every_other.at(0.25, 0).weights == every_other.weights
    assert every_other.at(0.25, 1) == SFT()  # a step without the switch compares no answers
    assert method.plus(features=2.0) == inner.plus(features=2.0).weighted()
    assert method.plus(features=2.0).core == inner
    assert method.plus(projected=1.0).learned(*[s := make_pair(KD()).student.sizes, s]) is not None
    with pytest.raises(LookupError, match="answers were not weighed"):
        method.token_terms(signals(inner, inputs()).logits())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (SFT(), "sft: weights are for terms that compare answers with the teacher's, and it has none"),
        (SFT().plus(features=1.0), r"sft \+ features: weights are for terms"),
        (AlignKD(), "align_kd: weights are for terms"),
        (FeatureKD(align=0), "feature_kd: weights are for terms"),
        (LLaVAKD(answers=0), "llava_kd: weights are for terms"),
        (SwitchKD(align=0, switch_layers=1), "switch_kd: weights are for terms"),
        (KD().weighted(), "kd, visual weights: its answers are weighed already"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_method_that_compares_no_answers_is_refused(method, message):
    with pytest.raises(ValueError, match=message):
        method.weighted()


def test_a_recipe_has_them_beside_any_method():
    made = recipe({"name": "kd", "weights": "visual"})
    assert made.method == KD().weighted()
    assert recipe("kd", "--method.weights", "visual").method == made.method
    assert recipe({"name": "kd", "weights": {"share": 0.3}}, "--method.weights.detail", "0").method == KD().weighted(
        VisualWeights(share=0.3, detail=0)
    )
    both = recipe({"name": "switch_kd", "features": 2, "weights": {"high": 0.8}})
    assert both.method == SwitchKD().plus(features=2.0).weighted(VisualWeights(high=0.8))
    for one in (made, both):
        assert build_recipe(recipe_to_dict(one), "saved.yaml") == one
    stages = [{"name": "first", "method": {"weights": None}}, {"name": "second"}]
    staged = recipe({"name": "kd", "weights": "visual"}, stages=stages)
    assert [stage.method for stage in staged.resolved_stages()] == [KD(), KD().weighted()]


def test_what_a_recipe_cannot_weigh_is_said_where_it_stands(tmp_path):
    with pytest.raises(RecipeError, match=r"mine.yaml: method.weights: must be one of visual, got 'visible'"):
        recipe({"name": "kd", "weights": "visible"})
    with pytest.raises(RecipeError, match=r"mine.yaml: method.weights: share must lie between 0 and 1, got 2.0"):
        recipe({"name": "kd", "weights": {"share": 2}})
    with pytest.raises(RecipeError, match=r"mine.yaml: method: sft: weights are for terms"):
        recipe({"name": "sft", "weights": "visual"})
    with pytest.raises(RecipeError, match=r"`method` has no `weight`; did you mean `weights`"):
        recipe({"name": "kd", "weight": "visual"})
    with pytest.raises(
        RecipeError, match=r"teacher.cache is set, and the answers of stage train have visual weights \(method kd, vis"
    ):
        recipe_of(tmp_path, {"name": "kd", "weights": "visual"})


@pytest.mark.parametrize("method", [KD(beta=1.0), SwitchKD(**WINDOW), LLaVAKD()], ids=lambda one: one.label)
def test_the_doctor_finds_the_divergences_as_they_are_without(tmp_path, method):
    plain, weighed = (
        list(directions(Examined(open_tiny(tmp_path, method=one)))) for one in (method, method.weighted())
    )
    assert weighed == plain
    assert {line.level for line in weighed} == {"ok"}
