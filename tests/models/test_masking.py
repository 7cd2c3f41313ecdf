"""A teacher whose smallest weights are 0 and come back."""

import logging

import pytest
import torch
from tiny_models import tiny_llava
from torch import nn

from switchkd.models import Pathway
from switchkd.models.masking import MagnitudeMask, masked_share


def make_teacher():
    return Pathway(tiny_llava(hidden=40, depth=3, seed=1))


def matrices(pathway):
    """Of the layers of the language model, by name."""
    layers = pathway.model.model.language_model.layers
    return {f"{name}.weight": layer.weight for name, layer in layers.named_modules() if isinstance(layer, nn.Linear)}


def test_the_shares_are_those_of_the_paper():
    found = [round(masked_share(0.2, step / 10), 9) for step in range(1, 11)]
    assert found == [0.2, 0.15, 0.15, 0.1, 0.1, 0.05, 0.05, 0.0, 0.0, 0.0]
    assert [masked_share(0.4, step / 1000) for step in (1, 199, 200, 599, 600, 799, 800, 1000)] == pytest.approx(
        [0.4, 0.4, 0.3, 0.2, 0.1, 0.1, 0.0, 0.0], abs=1e-12
    )
    assert masked_share(0.2, 1.0) == 0.0  # what is measured on held-out rows is measured with the whole teacher


def test_hand_computed():
    teacher = make_teacher()
    weight = teacher.part("language")[0].layers[0].self_attn.q_proj.weight.requires_grad_(False)
    weight.zero_()
    weight[0, :5] = torch.tensor([-3.0, 1.0, -2.0, 4.0, 2.0])
    weight[1:] = 9.0
    count = weight.numel()
    mask = MagnitudeMask(teacher, 0.2)
    mask.set((count - 40 * (weight.shape[0] - 1) - 3) / count)  # of the first row all zeros, and two of the five
    assert weight[0, :5].tolist() == [
        -3.0,
        0.0,
        -2.0,
        4.0,
        2.0,
    ]  # of the two of magnitude 2 one too many would go: both stay
    mask.set((count - 40 * (weight.shape[0] - 1) - 2) / count)
    assert weight[0, :5].tolist() == [-3.0, 0.0, 0.0, 4.0, 0.0]
    mask.set(0.0)
    assert weight[0, :5].tolist() == [-3.0, 1.0, -2.0, 4.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_oracle(dtype):
    """Each matrix by itself: what is smaller than the value that a full sort has there is 0, all else as it was."""
    teacher = make_teacher()
    teacher.to(dtype)
    before = {name: weight.detach().clone() for name, weight in matrices(teacher).items()}
    others = {
        name: tensor.clone()
        for name, tensor in teacher.model.state_dict().items()
        if not any(name.endswith(k) for k in before)
    }
    mask = MagnitudeMask(teacher, 0.2)
    for share in (0.2, 0.15, 0.05, 0.3):
        mask.set(share)
        for name, weight in matrices(teacher).items():
            values = before[name].flatten().tolist()
            limit = sorted(map(abs, values))[int(share * len(values) + 1e-6)]
            assert weight.flatten().tolist() == [0.0 if abs(value) < limit else value for value in values]
            gone = (weight == 0).double().mean().item()
            assert share - 0.05 < gone <= share + 1e-9
    mask.set(0.0)
    assert all(torch.equal(weight, before[name]) for name, weight in matrices(teacher).items())
    now = teacher.model.state_dict()
    assert others
    assert all(torch.equal(now[name], tensor) for name, tensor in others.items())


def test_only_the_matrices_of_the_language_models_layers_are_masked():
    teacher = make_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    MagnitudeMask(teacher, 0.2).set(0.5)
    changed = {name for name, tensor in teacher.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.language_model.layers.{name}" for name in matrices(teacher)}
    assert len(changed) == 3 * 7


def test_the_copy_is_made_and_told_once(caplog):
    teacher = make_teacher()
    mask = MagnitudeMask(teacher, 0.2)
    with caplog.at_level(logging.INFO, "switchkd"):
        mask.set(0.0)
        assert caplog.messages == []  # a teacher that stays whole is not copied
        for share in (0.2, 0.0, 0.2, 0.1):
            mask.set(share)
    count = sum(weight.numel() for weight in matrices(teacher).values())
    assert mask.bytes == 4 * count
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "teacher.mask: a copy of the language model's 21 matrices is kept in the memory of the host",
        "teacher.mask: 20.0 % of the weights of each matrix are 0",
        "teacher.mask: 0.0 % of the weights of each matrix are 0",
        "teacher.mask: 10.0 % of the weights of each matrix are 0",
    ]


def test_weights_that_are_no_numbers_are_refused():
    teacher = make_teacher()
    layer = teacher.part("language")[0].layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="to 0, and these are quantised: take mask out, or choose another teacher"):
        MagnitudeMask(teacher, 0.2)
