"""feature_kd: the mean squared distance between what both models see."""

import oracles
import pytest
import torch
from inner_cases import make_pair, reached, samples, signals_of, written_out
from tiny_models import read_apart, tiny_inputs, tiny_llava

from switchkd.batch import TEACHER
from switchkd.losses import squared_error
from switchkd.methods import FeatureKD
from switchkd.models import Pathway
from switchkd.models.capture import Vision
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.train.step import DistillationStep


def seen(student, teacher):
    """Signals of samples whose V(x) is written out."""
    return written_out({Vision(): student}, {Vision(): teacher}, logits=3)


def test_hand_computed():
    # Row 0: differences 1, 0, −2, 3 → squares 1 + 0 + 4 + 9 = 14, over 4 entries 3.5, at weight 2: 7. Row 1 has no image.
    signals = seen(samples([[2.0, 1.0], [0.0, 5.0]], []), samples([[1.0, 1.0], [2.0, 2.0]], []))
    found = FeatureKD(features=2.0).sample_terms(signals, None)
    assert found["features"].tolist() == [7.0, 0.0]


def test_oracle():
    method = FeatureKD(features=0.5)
    signals = signals_of(make_pair(method))
    found = method.sample_terms(signals, None)["features"]
    both = signals.activations[TEACHER]
    pairs = zip(both.student[Vision()], both.teacher[Vision()], strict=True)
    expected = [0.5 * oracles.squared_error(*pair) for pair in pairs]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert found[2] == 0 < found[:2].min()


def test_the_term_trains_the_vision_encoder_and_nothing_else():
    method = FeatureKD()
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), None)["features"].sum()) == {"vision"}


def test_equal_encoders_have_nothing_to_learn():
    method = FeatureKD()
    pair = make_pair(method)
    pair.student.model.model.vision_tower.load_state_dict(pair.teacher.model.model.vision_tower.state_dict())
    assert method.sample_terms(signals_of(pair), None)["features"].tolist() == [0, 0, 0]


def test_half_precision_is_summed_in_float32():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 300, 40, generator=generator) + 20).bfloat16()
    assert squared_error(student, teacher).item() == pytest.approx(oracles.squared_error(student, teacher), rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 48}, r"feature width: 48 and 32 .*give the pair a bridge .*or choose a method that does not"),
        ({"image_size": 24}, r"visual tokens per image: 9 and 4 .*give the pair a bridge"),
    ],
)
def test_pairs_that_see_differently_need_a_bridge_before_anything_runs(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_pair(FeatureKD(), **sizes)


def bridged(method):
    """A student that sees 9 tokens of width 48, a teacher that sees 4 of width 32, and the bridge between them; two images, one, none."""
    student, teacher = (
        Pathway(tiny_llava(seed=2, width=48, image_size=24).double()),
        Pathway(tiny_llava(seed=1).double()),
    )
    student.train_only(("vision", "projector", "language"))
    torch.manual_seed(3)
    pair = Pair(student, teacher, needs=method.needs, vocabulary=90, bridge=Bridge(48, 32).double()).train()
    inputs = [tiny_inputs(images=(2, 1, 0), image_size=size, seed=size) for size in (24, 16)]
    return pair, read_apart(*inputs, [(place, place) for place in range(3)])


def test_over_a_bridge_the_teachers_features_are_compared_with_the_carried_ones():
    """Written out: V_S(x) interpolated from 3 x 3 to 2 x 2, translated, and laid against V_T(x) of the same picture."""
    method = FeatureKD(features=0.5)
    pair, batch = bridged(method)
    found = method.sample_terms(pair(batch), None)["features"]
    planes = pair.student.see(batch.student).unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    planes = torch.nn.functional.interpolate(planes, size=(2, 2), mode="bilinear", antialias=True)
    carried = planes.permute(0, 2, 3, 1).flatten(1, 2) @ pair.bridge.translate.weight.T + pair.bridge.translate.bias
    error = (carried - pair.teacher.see(batch.readers[TEACHER])).square().mean(dim=(1, 2))  # of three pictures
    expected = [0.5 * error[:2].mean().item(), 0.5 * error[2].item(), 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    reached = [
        name for name, parameter in pair.named_parameters() if parameter.grad is not None and parameter.grad.any()
    ]
    assert {name.rsplit(".", 2)[0] for name in reached if "vision_tower" not in name} == {"bridge"}
    assert any("student" in name for name in reached)


def test_what_is_seen_without_a_switch_and_with_one_crosses_the_same_bridge():
    method = FeatureKD()
    pair, batch = bridged(method)
    crossed = []
    plain_cross = pair.cross
    pair.cross = lambda seen, batch: crossed.append(plain_cross(seen, batch)) or crossed[-1]
    alone = method.sample_terms(pair(batch), None)["features"]
    pair.needs |= {"switch"}
    signals = pair(batch)
    assert torch.equal(method.sample_terms(signals, None)["features"], alone)
    assert signals.compared[TEACHER].switch is not None
    assert len(crossed) == 2  # once in each pass


def test_a_batch_without_images_gives_the_bridge_a_gradient_of_zero():
    """Or one rank would wait for it while another reduces it."""
    method = FeatureKD()
    pair, _ = bridged(method)
    inputs = [tiny_inputs(images=(0, 0), image_size=size) for size in (24, 16)]
    sums = DistillationStep(pair, method)(read_apart(*inputs, [(0, 0)]))
    sums.loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in pair.bridge.parameters())


def test_what_configs_do_not_tell_the_first_batch_does():
    signals = seen(samples([[1.0, 1.0]]), samples([[1.0, 1.0], [2.0, 2.0]]))
    with pytest.raises(
        ValueError, match=r"sample 'sample-0@0' has 1 tokens of Vision\(\) in the student and 2 in the teacher"
    ):
        FeatureKD().sample_terms(signals, None)
    signals = seen(samples([[1.0, 1.0]]), samples([[1.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"has 2 channels of Vision\(\) in the student and 3 in the teacher"):
        FeatureKD().sample_terms(signals, None)


def test_a_frozen_vision_encoder_is_refused():
    with pytest.raises(
        ValueError, match=r"vision encoder is frozen \(0 of \d+ parameters train\) and the term on V\(x\)"
    ):
        make_pair(FeatureKD(), train=("projector", "language"))


def test_without_align_the_answers_teach_by_cross_entropy_alone():
    method = FeatureKD(align=0)
    logits = signals_of(make_pair(method)).logits()
    assert list(method.token_terms(logits)) == ["ce"]
    assert method.statistics(logits) == method.directions == {}
    assert FeatureKD().directions == {"align": "reverse"}
