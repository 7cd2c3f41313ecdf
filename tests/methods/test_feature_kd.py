"""feature_kd: the mean squared distance between what both models see."""

import oracles
import pytest
import torch
from inner_cases import make_pair, reached, samples, signals_of, written_out

from switchkd.batch import TEACHER
from switchkd.losses import squared_error
from switchkd.methods import FeatureKD
from switchkd.models.capture import Vision


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
        ({"width": 48}, r"feature width: 48 and 32, and the method compares Vision\(\) one by one"),
        ({"image_size": 24}, r"grid side: 3 and 2, and the method compares Vision\(\) one by one"),
    ],
)
def test_pairs_that_see_differently_are_refused_before_anything_runs(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_pair(FeatureKD(), **sizes)


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
        ValueError, match=r"vision encoder is frozen \(0 of \d+ parameters train\) and its term on V\(x\)"
    ):
        make_pair(FeatureKD(), train=("projector", "language"))


def test_without_align_the_answers_teach_by_cross_entropy_alone():
    method = FeatureKD(align=0)
    logits = signals_of(make_pair(method)).logits()
    assert list(method.token_terms(logits)) == ["ce"]
    assert method.statistics(logits) == method.directions == {}
    assert FeatureKD().directions == {"align": "reverse"}
