"""align_kd: soft targets at all text, first-layer attention through a head map, projected visual tokens through a linear map."""

import math

import oracles
import pytest
import torch
from inner_cases import make_pair, reached, signals_of, written_out

from switchkd.batch import TEACHER
from switchkd.methods import AlignKD
from switchkd.methods.align_maps import Maps
from switchkd.models.capture import Attention, Hidden, Projected
from switchkd.signals import Sizes

TEXT, ATTENTION, PROJECTED = Hidden(at="text"), Attention(layer=0, of="text", to="visual"), Projected()
TERMS = ["soft", "attention", "projected", "focus"]


def test_hand_computed():
    # One text position, three ids, in units of log 2: teacher (1, 0, 0) → ½, ¼, ¼; student uniform: KL = log 3 − 1½ log 2.
    # Two student heads and one of the teacher's, one text, three visual tokens. A_S = (.2 .4 .0), (.0 .2 .4), M_A their mean
    # (.1 .3 .2); A_T = (.4 .3 .1): differences .3, 0, .1 → squares .09 + .01 over three.
    # Projected: width 1 in both, M_P the identity: differences 1, 2, 3 → (1 + 4 + 9)/3. The top 2 of A_T are tokens 0 and 1: (1 + 4)/2.
    unit = math.log(2)
    inside = {
        "student": ([[0.0, 0, 0]], [[[0.2, 0.4, 0.0]], [[0.0, 0.2, 0.4]]], [[1.0], [2.0], [3.0]]),
        "teacher": ([[unit, 0, 0]], [[[0.4, 0.3, 0.1]]], [[0.0], [0.0], [0.0]]),
    }
    both = [
        {
            site: [torch.tensor(values, dtype=torch.float64)]
            for site, values in zip((TEXT, ATTENTION, PROJECTED), given, strict=True)
        }
        for given in inside.values()
    ]
    maps = Maps(Sizes(width=1, heads=2, features=32), Sizes(width=1, heads=1, features=32)).double()
    found = AlignKD(soft=2.0, attention=3.0, projected=1.0, focus=0.5, top=2).sample_terms(
        written_out(*both, logits=3), maps
    )
    expected = [2 * (math.log(3) - 1.5 * unit), 3 * 0.1 / 3, 14 / 3, 0.5 * 5 / 2]
    assert list(found) == TERMS
    assert [value.item() for value in found.values()] == pytest.approx(expected, abs=1e-12)


def test_a_row_without_text_to_compare_has_no_soft_targets():
    both = [{TEXT: [torch.zeros(0, 3, dtype=torch.float64)]} for _ in ("student", "teacher")]
    found = AlignKD(attention=0, projected=0, focus=0).sample_terms(written_out(*both, logits=3), None)
    assert found["soft"].tolist() == [0.0]


def test_oracle():
    method = AlignKD(soft=0.7, attention=5.0, projected=0.3, focus=0.2, top=3, temperature=2.0)
    pair = make_pair(method)
    with torch.no_grad():
        for parameter in pair.learned.parameters():  # the biases too, which begin at 0
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double())
    signals = signals_of(pair)
    found = method.sample_terms(signals, pair.learned)
    both = signals.activations[TEACHER]
    student, teacher = both.student, both.teacher
    heads, width = pair.learned.heads, pair.learned.width
    for row, tokens in enumerate((4, 8, 0)):
        z_s, z_t = both.student_head.logits(student[TEXT][row]), both.teacher_head.logits(teacher[TEXT][row])
        assert z_s.shape == z_t.shape == (len(z_s), 90)
        soft = sum(oracles.forward_kl(z_s, z_t, 2.0)) / len(z_s)
        a_s, a_t = student[ATTENTION][row].tolist(), teacher[ATTENTION][row]
        weight, bias = heads.weight.tolist(), heads.bias.tolist()
        mapped = [
            [
                [sum(w * a_s[s][q][k] for s, w in enumerate(weight[t])) + bias[t] for k in range(tokens)]
                for q in range(a_t.shape[1])
            ]
            for t in range(a_t.shape[0])
        ]
        flat = torch.tensor(mapped, dtype=torch.float64).view(-1, max(tokens, 1))
        attention = oracles.squared_error(flat, a_t.reshape(-1, max(tokens, 1)))
        p_s = (
            torch.stack([width.weight @ x + width.bias for x in student[PROJECTED][row]])
            if tokens
            else torch.zeros(0, 40)
        )
        p_t = teacher[PROJECTED][row]
        received = [sum(a_t[h, q, k].item() for h in range(2) for q in range(a_t.shape[1])) for k in range(tokens)]
        chosen = sorted(range(tokens), key=lambda k, r=received: -r[k])[:3]
        expected = {
            "soft": 0.7 * soft,
            "attention": 5.0 * attention,
            "projected": 0.3 * oracles.squared_error(p_s, p_t),
            "focus": 0.2 * oracles.squared_error(p_s[chosen], p_t[chosen]),
        }
        assert {name: value[row].item() for name, value in found.items()} == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("term", "parts"),
    [
        ("soft", {"vision", "projector", "language"}),
        # the first layer's attention is paid by its queries to its keys: of text, and of what P gave
        ("attention", {"vision", "projector", "language", "learned"}),
        ("projected", {"vision", "projector", "learned"}),
        ("focus", {"vision", "projector", "learned"}),
    ],
)
def test_where_each_term_reaches(term, parts):
    method = AlignKD()
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), pair.learned)[term].sum()) == parts


def test_the_maps_begin_as_mean_and_isometry():
    maps = Maps(Sizes(width=24, heads=2, features=32), Sizes(width=40, heads=4, features=32))
    rows, attention = torch.randn(2000, 24), torch.rand(2, 5, 3)
    assert torch.allclose(maps.attention(attention), attention.mean(dim=0).expand(4, 5, 3))
    assert maps.projected(rows).square().mean().item() == pytest.approx(rows.square().mean().item(), rel=1e-4)
    assert torch.equal(Maps(Sizes(8, 2, 32), Sizes(8, 2, 32)).width.weight, torch.eye(8))


def test_only_what_has_a_weight_is_asked_for_and_learned():
    sizes = Sizes(8, 2, 32)
    assert AlignKD(attention=0, projected=0, focus=0).needs == {"student", "teacher", TEXT}
    assert AlignKD(attention=0, projected=0, focus=0).learned(sizes, sizes) is None
    assert AlignKD(attention=0, focus=0, soft=0).needs == {"student", "teacher", PROJECTED}
    assert AlignKD(soft=0, projected=0).needs == {"student", "teacher", ATTENTION, PROJECTED}
    assert AlignKD(soft=0).directions == {}
    assert AlignKD().directions == {"soft": "forward"}


def test_what_cannot_be_laid_side_by_side_is_refused():
    with pytest.raises(ValueError, match=r"visual tokens per image: 9 and 4, and the method compares .* one by one"):
        make_pair(AlignKD(), image_size=24)
    method = AlignKD(soft=0, projected=0, focus=0)
    student, teacher = ({ATTENTION: [torch.tensor([[[0.1, 0.2]] * texts]).double()]} for texts in (1, 2))
    with pytest.raises(
        ValueError, match=r"sample 'sample-0@0' has 1 queries of Attention\(.*\) in the student and 2 in the teacher"
    ):
        method.sample_terms(written_out(student, teacher, logits=3), method.learned(Sizes(8, 1, 32), Sizes(8, 1, 32)))
