"""llava_kd: forward KL at answers and visual tokens, and the relation of visual tokens."""

import math
from pathlib import Path

import oracles
import pytest
import torch
from cases import open_tiny
from inner_cases import inner, look, make_pair, reached

from switchkd.doctor.check_directions import directions
from switchkd.methods import SFT, LLaVAKD
from switchkd.recipe.schema import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "llava-kd-0.5b-from-3b.yaml"


def test_hand_computed():
    # Two visual tokens, three ids, τ = 1; hidden states are logits here, in units of log 2.
    # Token 0: teacher (1, 0, 0) → p_T = ½, ¼, ¼; student (0, 0, 0) → ⅓ each. KL(p_T‖p_S) = ½ log(3/2) + ½ log(3/4) = log 3 − 1½ log 2.
    # Token 1: (0, 1, 0) in both, KL = 0. The mean is half of that; at weight 2 it is log 3 − 1½ log 2.
    # R_T: z₀·z₀ = z₁·z₁ = 1, z₀·z₁ = 0: length √2. R_S has z₁·z₁ = 1 alone: length 1, product 1. 1 − cos = 1 − 1/√2, at weight ½ half.
    unit = math.log(2)
    teacher = inner("visual", [[unit, 0.0, 0.0], [0.0, unit, 0.0]], [])
    student = inner("visual", [[0.0, 0.0, 0.0], [0.0, unit, 0.0]], [])
    found = LLaVAKD(visual=2.0).row_terms(student, teacher, None)
    assert found["visual"].tolist() == pytest.approx([math.log(3) - 1.5 * unit, 0.0], abs=1e-12)
    assert found["relation"].tolist() == pytest.approx([0.5 * (1 - 1 / math.sqrt(2)), 0.0], abs=1e-12)


def test_oracle():
    method = LLaVAKD(visual=0.7, relation=0.3, temperature=2.0)
    student, teacher = look(make_pair(method), method)
    found = method.row_terms(student, teacher, None)
    assert {name: value[2].item() for name, value in found.items()} == {"visual": 0, "relation": 0}
    for row, tokens in enumerate((4, 8)):
        ours, theirs = (side.head.logits(side["visual"][row]) for side in (student, teacher))
        assert ours.shape == theirs.shape == (tokens, 90)  # of 96 rows, the last six are padding
        divergence = sum(oracles.forward_kl(ours, theirs, 2.0)) / tokens
        assert found["visual"][row].item() == pytest.approx(0.7 * divergence, abs=1e-10)
        assert found["relation"][row].item() == pytest.approx(0.3 * oracles.relation(ours, theirs), abs=1e-10)


@pytest.mark.parametrize("term", ["visual", "relation"])
def test_terms_about_visual_tokens_train_all_parts(term):
    method = LLaVAKD()
    pair = make_pair(method)
    assert reached(pair, method.row_terms(*look(pair, method), None)[term].sum()) == {"vision", "projector", "language"}


def test_only_what_has_a_weight_is_asked_for():
    assert LLaVAKD(visual=0).directions == {"answers": "forward"}
    assert LLaVAKD(answers=0).directions == {"visual": "forward"}
    assert LLaVAKD(visual=0, relation=0).needs == {"student", "teacher"}
    rows = inner("visual", [[1.0, 2.0]])
    assert list(LLaVAKD(relation=0).row_terms(rows, rows, None)) == ["visual"]


def test_the_doctor_finds_both_divergences_forward(tmp_path):
    lines = list(directions(open_tiny(tmp_path, method=LLaVAKD())))
    assert [(line.level, line.detail.split(":")[0]) for line in lines] == [("ok", "answers"), ("ok", "visual")]


def test_another_number_of_visual_tokens_is_refused():
    with pytest.raises(ValueError, match="visual tokens per image: 9 and 4, and the method compares visual one by one"):
        make_pair(LLaVAKD(), image_size=24)
    with pytest.raises(
        ValueError, match="row 0 of a batch has 1 tokens of 'visual' in the student and 2 in the teacher"
    ):
        LLaVAKD().row_terms(inner("visual", [[1.0, 1.0]]), inner("visual", [[1.0, 1.0], [0.0, 1.0]]), None)


def test_the_recipe_has_the_papers_three_stages():
    stages = load_recipe(RECIPE).resolved_stages()
    assert [(stage.name, stage.train, stage.method) for stage in stages] == [
        ("dpt", ("projector",), LLaVAKD(answers=1.0, visual=1.0, relation=0.5)),
        ("sft", ("projector", "language"), SFT()),
        ("dft", ("projector", "language"), LLaVAKD(answers=1.0, visual=1.0, relation=0.5)),
    ]


def test_half_precision_states_become_float32_logits():
    student, teacher = (inner("visual", [[3.0, 0.0], [0.0, 1.0]]), inner("visual", [[1.0, 0.0], [0.0, 2.0]]))
    exact = LLaVAKD().row_terms(student, teacher, None)
    for side in (student, teacher):
        side.rows["visual"][0] = side.rows["visual"][0].bfloat16()
    for name, value in LLaVAKD().row_terms(student, teacher, None).items():
        assert value.item() == pytest.approx(exact[name].item(), abs=1e-6)
        assert torch.promote_types(value.dtype, torch.float32) == value.dtype
