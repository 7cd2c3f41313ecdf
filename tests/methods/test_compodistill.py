"""compodistill: forward KL at answers, and where the middle layers of both language models look."""

import math

import oracles
import pytest
import torch
from cases import open_tiny
from inner_cases import make_pair, reached, signals_of, written_out
from tiny_models import IMAGE_TOKEN, tiny_batch, tiny_llava

from switchkd.batch import TEACHER
from switchkd.doctor.check_directions import directions
from switchkd.doctor.samples import Examined
from switchkd.methods import SFT, CompoDistill
from switchkd.models import Pathway
from switchkd.models.capture import MiddleAttention, capture, of_samples

ALL, VISUAL = MiddleAttention(of="all"), MiddleAttention(of="visual")


def test_hand_computed():
    # One layer each, one query, two keys: (.3 0) and (.2 .2), so 1 − 1/√2, at weight 2; the second row has no image.
    student, teacher = (
        {ALL: [torch.tensor([[weights]]).double(), torch.zeros(1, 1, 0).double()]}
        for weights in ([0.3, 0.0], [0.2, 0.2])
    )
    found = CompoDistill(looks=2.0).sample_terms(written_out(student, teacher, logits=3), None)
    assert found["looks"].tolist() == pytest.approx([2 - math.sqrt(2), 0.0], abs=1e-12)


@pytest.mark.parametrize(("reading", "site"), [("paper", ALL), ("code", VISUAL)])
def test_oracle(reading, site):
    method = CompoDistill(looks=0.7, reading=reading)
    signals = signals_of(make_pair(method))
    found = method.sample_terms(signals, None)["looks"]
    both = signals.activations[TEACHER]
    for student, teacher, value in zip(both.student[site], both.teacher[site], found, strict=True):
        expected = oracles.attention_distance(student, teacher, reading == "code")
        assert value.item() == pytest.approx(0.7 * expected, abs=1e-9)
    assert found[2] == 0 < found[:2].min()


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (2, [0]), (3, [1]), (5, [1, 2]), (6, [2, 3]), (7, [2, 3, 4])])
def test_the_layers_are_the_middle_third(depth, layers):
    """Against what transformers shows of the plain model, its heads averaged."""
    pathway, inputs = Pathway(tiny_llava(depth=depth)), tiny_batch(images=(1, 2)).student
    pathway.show_attention(True)
    sites = frozenset({ALL, VISUAL})
    with torch.no_grad(), capture(pathway, pathway.see(inputs), inputs, sites) as captured:
        pathway.say(captured.features, inputs)
    found = of_samples(captured, sites)
    with torch.no_grad():
        plain = pathway.model(input_ids=inputs.tokens, output_attentions=True, **inputs.images).attentions
    for number, length in enumerate(inputs.lengths.tolist()):
        visual = inputs.tokens[number, :length] == IMAGE_TOKEN
        expected = torch.stack([plain[layer][number].mean(dim=0)[:length, :length] for layer in layers])[:, :, visual]
        torch.testing.assert_close(found[ALL][number], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[VISUAL][number], expected[:, visual], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reading", ["paper", "code"])
def test_the_term_trains_all_parts(reading):
    method = CompoDistill(reading=reading)
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), None)["looks"].sum()) == {
        "vision",
        "projector",
        "language",
    }


def test_only_what_has_a_weight_is_asked_for():
    assert CompoDistill(looks=0).needs == {"student", "teacher"}
    assert CompoDistill().needs == SFT().plus(looks=1.0).needs | {"student", "teacher"} == {"student", "teacher", ALL}
    assert CompoDistill(reading="code").needs == {"student", "teacher", VISUAL}
    assert SFT().plus(looks=1.0).directions == {}
    assert VISUAL.alike < ALL.alike  # only all tokens need the same text


def test_the_doctor_finds_the_divergence_forward(tmp_path):
    lines = list(directions(Examined(open_tiny(tmp_path, method=CompoDistill()))))
    assert [(line.level, line.detail.split(":")[0]) for line in lines] == [("ok", "answers")]


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"visual tokens per image: 9 and 4, and the method compares MiddleAttention"):
        make_pair(CompoDistill(), image_size=24)
    method = CompoDistill()
    with pytest.raises(
        ValueError, match="the student has 4 of them and the teacher 1: choose a teacher that is at least"
    ):
        method.sample_terms(signals_of(make_pair(method, depth=6 + 4)), None)
