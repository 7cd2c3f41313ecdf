"""feature_kd with the channels weighed by what the teacher says about them."""

import math

import pytest
import torch
from inner_cases import IMAGES, make_pair, samples, written_out
from tiny_models import read_apart, tiny_batch, tiny_inputs, tiny_llava

from switchkd.batch import TEACHER
from switchkd.losses import squared_error
from switchkd.methods import FeatureKD
from switchkd.methods.feature_weights import FeatureWeights
from switchkd.models import Pathway
from switchkd.models.capture import Vision
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.fisher import feature_fisher


def teacher(**sizes):
    pathway = Pathway(tiny_llava(hidden=40, depth=3, seed=1, **sizes).double())
    return pathway.requires_grad_(False)


def test_hand_computed():
    # Squares 1, 4 and 0, 9 in two channels of weight 0.5 and 1.5: (0.5 + 6 + 0 + 13.5) / 4 = 5, at weight 2: 10.
    weights = FeatureWeights(2, rows=1).double()
    weights.measured_as(torch.tensor([3.0, 9.0], dtype=torch.float64))
    assert weights.weights.tolist() == [0.5, 1.5]
    signals = written_out(
        {Vision(): samples([[1.0, 2.0], [0.0, 3.0]])}, {Vision(): samples([[0.0, 0.0]] * 2)}, logits=3
    )
    found = FeatureKD(features=2.0, fisher_rows=1).sample_terms(signals, weights)
    assert found["features"].tolist() == [10.0]


def test_weights_of_one_change_nothing_and_the_gradient_is_theirs():
    generator = torch.Generator().manual_seed(0)
    student, taught = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
    weights = torch.rand(5, generator=generator, dtype=torch.float64)
    assert torch.equal(squared_error(student, taught, torch.ones(5)), squared_error(student, taught))
    assert torch.autograd.gradcheck(lambda x: squared_error(x, taught, weights), student.requires_grad_())


def exact(pathway, inputs):
    """The diagonal of the Fisher information of each feature, by the whole jacobian of all logits: Σ_a Σ_y p_y (∂ log p_y)²."""
    seen = pathway.see(inputs)

    def log_p(features):
        return pathway.logits(pathway.say(features, inputs)).log_softmax(dim=-1)

    jacobian = torch.autograd.functional.jacobian(log_p, seen)  # [answers, ids, images, tokens, width]
    weighed = jacobian.square() * log_p(seen).detach().exp()[..., None, None, None]
    return weighed.sum(dim=(0, 1)).flatten(0, -2).mean(dim=0)


@pytest.mark.long
def test_the_mean_of_many_draws_is_the_fisher_information():
    pathway, inputs = teacher(), tiny_inputs(images=(1, 1))
    expected = exact(pathway, inputs)
    draws = torch.stack([feature_fisher(pathway, [inputs], seed=seed) for seed in range(100)])
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - expected).abs() < 4.5 * error).all()
    assert (error / expected).mean() < 0.25  # so that it says something
    assert expected.max() > 2 * expected.min()


@pytest.mark.long
def test_it_is_the_curvature_of_what_the_switch_compares():
    """KL(p_T(v) ‖ p_T(v + ε e)) = ½ ε² F for each feature, summed over the answers; here for a whole channel at once."""
    pathway, inputs = teacher(), tiny_inputs(images=(1,))
    seen = pathway.see(inputs)
    base = pathway.logits(pathway.say(seen, inputs)).log_softmax(dim=-1)
    channel, size, total = 3, 1e-3, 0.0  # norms are float32 in transformers, so that smaller steps drown
    for token in range(seen.shape[1]):
        for step in (size, -size):
            moved = seen.clone()
            moved[0, token, channel] += step
            other = pathway.logits(pathway.say(moved, inputs)).log_softmax(dim=-1)
            total += (base.exp() * (base - other)).sum().item() / size**2
    assert total / seen.shape[1] == pytest.approx(exact(pathway, inputs)[channel].item(), rel=3e-3)


def test_one_draw_is_what_a_slow_loop_finds(monkeypatch):
    """Sample by sample, answer by answer: the gradient of the log-probability of what was drawn, by the whole chain."""
    pathway, inputs = teacher(), tiny_inputs(images=IMAGES)
    monkeypatch.setattr("switchkd.pairing.fisher._ROWS", 4)
    numbers = torch.rand(len(inputs.predicts), generator=torch.Generator().manual_seed(5)).tolist()
    features = pathway.see(inputs).detach().requires_grad_()
    log_p = pathway.logits(pathway.say(features, inputs)).log_softmax(dim=-1)
    said = 0
    for row, number in zip(log_p, numbers, strict=True):
        below, drawn = 0.0, -1
        while below <= number and drawn < len(row) - 1:
            drawn += 1
            below += row[drawn].exp().item()
        said = said + row[drawn]
    (gradient,) = torch.autograd.grad(said, features)
    expected = gradient.flatten(0, 1).square().mean(dim=0)
    assert feature_fisher(pathway, [inputs], seed=5).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


def test_batches_weigh_by_their_tokens_and_those_without_images_by_nothing(monkeypatch):
    pathway = teacher()
    one, two, none = (tiny_inputs(images=images, seed=seed) for seed, images in enumerate([(1,), (2, 1), (0, 0)]))
    assert torch.equal(feature_fisher(pathway, [none, one]), feature_fisher(pathway, [one]))
    with pytest.raises(ValueError, match="there is no image to measure the features' weights on"):
        feature_fisher(pathway, [none])
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), 0.5))
    alone = [feature_fisher(pathway, [inputs]) for inputs in (one, two)]
    together = feature_fisher(pathway, [one, two])
    assert together.tolist() == pytest.approx(((alone[0] + 3 * alone[1]) / 4).tolist(), rel=1e-12)


def test_a_channel_that_the_projector_does_not_read_weighs_nothing():
    pathway = teacher()
    with torch.no_grad():
        pathway.model.model.multi_modal_projector.linear_1.weight[:, 7] = 0
    fisher = feature_fisher(pathway, [tiny_inputs()])
    assert fisher[7] == 0
    assert (fisher > 0).sum() == 31


def test_over_a_bridge_the_weights_are_those_of_the_teachers_channels():
    method = FeatureKD(fisher_rows=3)
    student = Pathway(tiny_llava(seed=2, width=48, image_size=24).double())
    student.train_only(("vision", "projector", "language"))
    frozen = teacher()
    learned = method.learned(student.sizes, frozen.sizes).double()
    assert learned.weights.shape == (32,)
    pair = Pair(student, frozen, needs=method.needs, vocabulary=90, bridge=Bridge(48, 32).double(), learned=learned)
    inputs = [tiny_inputs(images=IMAGES, image_size=size, seed=size) for size in (24, 16)]
    batch = read_apart(*inputs, [(0, 0), (1, 1)])
    with pytest.raises(
        ValueError, match=r"the weights of the features are not known yet: measure them by `pair.feature_importance`"
    ):
        method.sample_terms(pair(batch), pair.learned)
    learned.measured_as(pair.feature_importance([batch]))
    assert torch.equal(
        learned.weights, feature_fisher(frozen, [inputs[1]]) / feature_fisher(frozen, [inputs[1]]).mean()
    )
    found = method.sample_terms(pair(batch), pair.learned)["features"]
    both = pair(batch).activations[TEACHER]
    for value, (seen, taught) in zip(found.tolist(), both.pairs(Vision()), strict=True):
        error = ((seen - taught).square() * learned.weights).mean() if len(seen) else torch.zeros(())
        assert value == pytest.approx(error.item(), abs=1e-12)
    assert all(parameter.grad is None for parameter in frozen.parameters())


def test_weights_are_known_again_from_what_was_saved():
    weights, again = FeatureWeights(3, rows=2), FeatureWeights(3, rows=2)
    again.load_state_dict(weights.state_dict())
    assert not again.measured
    weights.measured_as(torch.tensor([1.0, 2.0, 3.0]))
    again.load_state_dict(weights.state_dict())
    assert again.measured
    assert torch.equal(again.known(), torch.tensor([0.5, 1.0, 1.5]))
    assert not list(weights.parameters())


@pytest.mark.parametrize(
    "importance", [torch.zeros(3), torch.tensor([1.0, math.nan, 1.0]), torch.tensor([math.inf, 1, 1])]
)
def test_what_tells_no_channel_from_another_is_refused(importance):
    with pytest.raises(ValueError, match=r"matter (0\.0|nan|inf) in the mean to its answers .* set fisher_rows to 0"):
        FeatureWeights(3, rows=2).measured_as(importance)


def test_alike_channels_learn_nothing_besides():
    pair = make_pair(FeatureKD())
    assert pair.learned is None
    assert FeatureKD().sample_terms(pair(tiny_batch(images=IMAGES)), None)["features"][0] > 0
