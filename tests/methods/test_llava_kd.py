"""llava_kd: forward KL at answers and visual tokens, and the relation of visual tokens."""

import math
from pathlib import Path

import oracles
import pytest
import torch
from cases import open_tiny
from inner_cases import make_pair, reached, samples, signals_of, written_out

from switchkd.batch import TEACHER
from switchkd.doctor.check_directions import directions
from switchkd.doctor.samples import Examined
from switchkd.methods import SFT, LLaVAKD
from switchkd.models.capture import Hidden
from switchkd.recipe.schema import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "llava-kd-0.5b-from-3b.yaml"
VISUAL = Hidden(at="visual")


def said(student, teacher):
    """Signals of samples whose logits at visual tokens are written out."""
    return written_out({VISUAL: student}, {VISUAL: teacher}, logits=student[0].shape[1])


def test_hand_computed():
    # Two visual tokens, three ids, τ = 1; hidden states are logits here, in units of log 2.
    # Token 0: teacher (1, 0, 0) → p_T = ½, ¼, ¼; student (0, 0, 0) → ⅓ each. KL(p_T‖p_S) = ½ log(3/2) + ½ log(3/4) = log 3 − 1½ log 2.
    # Token 1: (0, 1, 0) in both, KL = 0. The mean is half of that; at weight 2 it is log 3 − 1½ log 2.
    # R_T: z₀·z₀ = z₁·z₁ = 1, z₀·z₁ = 0: length √2. R_S has z₁·z₁ = 1 alone: length 1, product 1. 1 − cos = 1 − 1/√2, at weight ½ half.
    unit = math.log(2)
    teacher = samples([[unit, 0.0, 0.0], [0.0, unit, 0.0]], [])
    student = samples([[0.0, 0.0, 0.0], [0.0, unit, 0.0]], [])
    found = LLaVAKD(visual=2.0).sample_terms(said(student, teacher), None)
    assert found["visual"].tolist() == pytest.approx([math.log(3) - 1.5 * unit, 0.0], abs=1e-12)
    assert found["relation"].tolist() == pytest.approx([0.5 * (1 - 1 / math.sqrt(2)), 0.0], abs=1e-12)


def test_oracle():
    method = LLaVAKD(visual=0.7, relation=0.3, temperature=2.0)
    signals = signals_of(make_pair(method))
    found = method.sample_terms(signals, None)
    both = signals.activations[TEACHER]
    assert {name: value[2].item() for name, value in found.items()} == {"visual": 0, "relation": 0}
    for row, tokens in enumerate((4, 8)):
        z_s, z_t = (
            both.student_head.logits(both.student[VISUAL][row]),
            both.teacher_head.logits(both.teacher[VISUAL][row]),
        )
        assert z_s.shape == z_t.shape == (tokens, 90)  # of 96 rows, the last six are padding
        divergence = sum(oracles.forward_kl(z_s, z_t, 2.0)) / tokens
        assert found["visual"][row].item() == pytest.approx(0.7 * divergence, abs=1e-10)
        assert found["relation"][row].item() == pytest.approx(0.3 * oracles.relation(z_s, z_t), abs=1e-10)


@pytest.mark.parametrize("term", ["visual", "relation"])
def test_terms_about_visual_tokens_train_all_parts(term):
    method = LLaVAKD()
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), None)[term].sum()) == {"vision", "projector", "language"}


def test_only_what_has_a_weight_is_asked_for():
    assert LLaVAKD(visual=0).directions == {"answers": "forward"}
    assert LLaVAKD(answers=0).directions == {"visual": "forward"}
    assert LLaVAKD(visual=0, relation=0).needs == {"student", "teacher"}
    visual = samples([[1.0, 2.0]])
    assert list(LLaVAKD(relation=0).sample_terms(said(visual, visual), None)) == ["visual"]


def test_the_doctor_finds_both_divergences_forward(tmp_path):
    lines = list(directions(Examined(open_tiny(tmp_path, method=LLaVAKD()))))
    assert [(line.level, line.detail.split(":")[0]) for line in lines] == [("ok", "answers"), ("ok", "visual")]


def test_another_number_of_visual_tokens_is_refused():
    with pytest.raises(ValueError, match=r"visual tokens per image: 9 and 4, and the method compares .* one by one"):
        make_pair(LLaVAKD(), image_size=24)
    signals = said(samples([[1.0, 1.0]]), samples([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(
        ValueError,
        match=r"sample 'sample-0@0' has 1 tokens of Hidden\(.*'visual'\) in the student and 2 in the teacher",
    ):
        LLaVAKD().sample_terms(signals, None)


def test_the_recipe_has_the_papers_three_stages():
    stages = load_recipe(RECIPE).resolved_stages()
    assert [(stage.name, stage.train, stage.method) for stage in stages] == [
        ("dpt", ("projector",), LLaVAKD(answers=1.0, visual=1.0, relation=0.5)),
        ("sft", ("projector", "language"), SFT()),
        ("dft", ("projector", "language"), LLaVAKD(answers=1.0, visual=1.0, relation=0.5)),
    ]


def test_half_precision_states_become_float32_logits():
    student, teacher = samples([[3.0, 0.0], [0.0, 1.0]]), samples([[1.0, 0.0], [0.0, 2.0]])
    exact = LLaVAKD().sample_terms(said(student, teacher), None)
    halved = said(*([x.bfloat16() for x in values] for values in (student, teacher)))
    for name, value in LLaVAKD().sample_terms(halved, None).items():
        assert value.item() == pytest.approx(exact[name].item(), abs=1e-6)
        assert torch.promote_types(value.dtype, torch.float32) == value.dtype
