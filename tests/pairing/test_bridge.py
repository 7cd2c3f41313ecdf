"""The bridge alone: its start, its resampling, and the translation that it is fitted to."""

import pytest
import torch
from torch.autograd import gradcheck

from switchkd.pairing.bridge import Bridge, resample


def grids(*sizes, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*size, width, generator=generator, dtype=torch.float64) for size in sizes]


def test_between_equal_shapes_it_begins_as_nothing():
    (grid,) = grids((3, 4), width=6)
    bridge = Bridge(6, 6).double()
    assert torch.equal(bridge([grid], [(3, 4)])[0], grid)


@pytest.mark.parametrize(("student", "teacher"), [(6, 10), (10, 6)])
def test_it_begins_with_no_direction_preferred_and_the_scale_kept(student, teacher):
    torch.manual_seed(0)
    weight = Bridge(student, teacher).double().translate.weight.detach()
    gram = weight.T @ weight * student / teacher if student < teacher else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(min(student, teacher), dtype=torch.float64), atol=1e-6, rtol=0)
    features = torch.randn(20000, student, dtype=torch.float64)
    assert (features @ weight.T).square().mean().item() == pytest.approx(1, rel=0.03)


def test_a_linear_slope_survives_resampling():
    """Bilinear interpolation between the centres of the cells, by hand: 4 cells of 0..3 seen as 2 are 0.5+… averages."""
    ramp = torch.arange(4.0).reshape(4, 1, 1).expand(4, 4, 1)
    up = resample(torch.tensor([[[0.0], [1.0]]]), (1, 4))
    torch.testing.assert_close(up, torch.tensor([[[0.0], [0.25], [0.75], [1.0]]]))
    down = resample(ramp, (2, 2))[:, 0, 0]
    assert down[0] == pytest.approx(3 - down[1])
    assert 0.5 <= down[0] < 1  # the mean of its two cells, a little of the third
    constant = resample(torch.full((5, 3, 2), 7.0), (2, 4))
    torch.testing.assert_close(constant, torch.full((2, 4, 2), 7.0))


def test_every_image_gets_the_size_that_the_teacher_gives_it():
    translated = Bridge(6, 4).double()(grids((2, 3), (4, 4), width=6), [(3, 3), (1, 2)])
    assert [tuple(grid.shape) for grid in translated] == [(3, 3, 4), (1, 2, 4)]
    with pytest.raises(ValueError, match="longer"):
        Bridge(6, 4).double()(grids((2, 3), width=6), [(3, 3), (1, 2)])


def test_gradients_reach_features_and_bridge():
    bridge = Bridge(3, 2).double()
    (grid,) = grids((2, 3), width=3)

    def through(grid, weight, bias):
        return torch.func.functional_call(
            bridge, {"translate.weight": weight, "translate.bias": bias}, ([grid], [(3, 2)])
        )[0]

    leaves = [grid.requires_grad_(), *(p.detach().clone().requires_grad_() for p in bridge.parameters())]
    assert gradcheck(through, leaves)


def test_half_precision_features_pass_through_a_bridge_in_float32():
    (translated,) = Bridge(6, 4)([grids((2, 2), width=6)[0].bfloat16()], [(4, 4)])
    assert translated.dtype == torch.float32


def test_fit_finds_a_linear_translation_exactly():
    student = grids((4, 4), (4, 4), (2, 4), width=5)
    matrix, shift = torch.randn(5, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    teacher = [resample(grid, (3, 3)) @ matrix + shift for grid in student]
    bridge = Bridge(5, 7).double()
    assert bridge.fit([(student[:2], teacher[:2]), (student[2:], teacher[2:])]) == pytest.approx(1, abs=1e-4)
    for translated, expected in zip(bridge(student, [(3, 3)] * 3), teacher, strict=True):
        torch.testing.assert_close(translated, expected, atol=1e-3, rtol=0)


def test_fit_reports_how_much_it_explains():
    """Targets that are half translation, half noise; held against the residual itself."""
    student, noise = grids((8, 8), (8, 8), width=3), grids((8, 8), (8, 8), width=3, seed=1)
    teacher = [grid + other for grid, other in zip(student, noise, strict=True)]
    bridge = Bridge(3, 3).double()
    explained = bridge.fit([(student, teacher)])
    stacked = torch.cat([grid.flatten(0, 1) for grid in teacher])
    residual = torch.cat([grid.flatten(0, 1) for grid in bridge(student, [(8, 8)] * 2)]) - stacked
    expected = 1 - residual.square().sum() / (stacked - stacked.mean(dim=0)).square().sum()
    assert explained == pytest.approx(expected.item(), abs=1e-5)
    assert 0.3 < explained < 0.7


def test_fit_needs_an_image():
    with pytest.raises(ValueError, match="no image to fit the bridge to"):
        Bridge(3, 3).fit([([], [])])
