"""Weights that are not finite: found before training and before they are saved, and a stop that says why."""

import json

import pytest
import torch
from run_files import write_run
from safetensors.torch import load_file, save_file
from steps import make_trainer, rows

from switchkd import distill
from switchkd.doctor import examine
from switchkd.methods import SFT
from switchkd.models.finite import describe, not_finite
from switchkd.recipe.schema import load_recipe


def test_every_kind_of_tensor_is_looked_at():
    nan, inf = float("nan"), float("inf")
    tensors = {
        "sound": torch.randn(3, 4),
        "nan": torch.tensor([1.0, nan]),
        "inf": torch.tensor([[1.0], [-inf]]).bfloat16(),
        "whole": torch.arange(3),
        "none": torch.empty(0),
        "half": torch.tensor(inf).half(),
        "largest": torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64),
    }
    bad = not_finite(tensors)
    assert bad == ["nan", "inf", "half"]
    assert describe(tensors, bad) == (
        "3 of 7 tensors are not finite: nan (1 of 2 values), inf (1 of 2 values), half (1 of 1 values)"
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("finite"))


def spoil(folder, name, row, value):
    """Put a value into a row of a tensor of a checkpoint's file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    whole = next(key for key in tensors if key.endswith(name))
    tensors[whole][row] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return whole


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_no_row_uses_are_found_before_training(tmp_path, who, value):
    """The last embedding is no token's."""
    file = write_run(tmp_path)
    spoil(tmp_path / who, "embed_tokens.weight", -1, value)
    lines = examine(load_recipe(file)).lines
    (finding,) = [line for line in lines if line.check.endswith(f"{who}'s weights")]
    assert finding.level == "failed"
    width = {"student": 24, "teacher": 40}[who]
    assert f"embed_tokens.weight ({width} of {320 * width:,} values)" in finding.detail
    with pytest.raises(
        ValueError, match=f"the doctor refuses to train: {who}'s weights: 1 of .* not finite: .*embed_tokens.weight"
    ):
        distill(load_recipe(file))
    assert not list((tmp_path / "run").glob("*/checkpoint-*"))


def test_a_teacher_with_a_matrix_of_zeros_is_noticed(tmp_path):
    file = write_run(tmp_path)
    spoil(tmp_path / "teacher", "layers.1.mlp.down_proj.weight", slice(None), 0.0)
    lines = examine(load_recipe(file)).lines
    (finding,) = [line for line in lines if line.check.endswith("teacher's weights")]
    assert finding.level == "warning"
    assert "1 of" in finding.detail
    assert "layers.1.mlp.down_proj.weight first: are" in finding.detail


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    trainer = make_trainer(tmp_path, steps=2, method=SFT(), save_strategy="steps", save_steps=1)
    with torch.no_grad():  # of a token that no row has
        trainer.pair.student.model.get_input_embeddings().weight[1, 3] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"after step 1, 1 of \d+ tensors are not finite: .*embed_tokens.weight \(1 of"
    ):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_stop_leaves_what_explains_it(tmp_path):
    """Of the second micro-batch of the step; the first one's samples are there too."""
    data = rows(4)
    data[2]["pixels"] = data[2]["pixels"] * float("nan")
    trainer = make_trainer(tmp_path, data=data, batch_size=2, accumulation=2)
    file = tmp_path / "not-finite-step-1.json"
    with pytest.raises(FloatingPointError, match=f"its samples, terms and norms are in {file}"):
        trainer.train()
    found = json.loads(file.read_text())
    assert (found["step"], found["terms"]["ce"]) == (1, "nan")
    named = [key for keys in found["batches"] for key in keys]
    assert "row-2@0" in found["batches"][-1]
    assert len(named) in (2, 4)
    assert list(found["pathways"]) == ["row-2"]
    assert set(found["parts"]) == {"vision", "projector", "language"}
    for part in found["parts"].values():
        assert part["weights"]["norm"] > 0
        assert part["weights"]["not_finite"] == []


def test_a_gradient_that_is_not_finite_is_named_by_its_tensor(tmp_path):
    trainer = make_trainer(tmp_path, method=SFT())
    weight = trainer.pair.student.model.model.multi_modal_projector.linear_1.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        FloatingPointError, match=r"step 1: the gradient is not finite; stopped before the update; its samples"
    ):
        trainer.train()
    found = json.loads((tmp_path / "not-finite-step-1.json").read_text())
    assert len(found["batches"][0]) == 4
    gradients = {part: found["parts"][part]["gradients"] for part in ("vision", "projector", "language")}
    assert gradients["projector"]["not_finite"] == ["model.multi_modal_projector.linear_1.weight"]
    assert gradients["projector"]["norm"] == "inf"
    assert gradients["language"]["norm"] > 0
    assert found["learning_rates"][0] == 1e-2


def test_the_plain_loss_explains_too(tmp_path):
    data = rows(4)
    data[2]["pixels"] = data[2]["pixels"] * float("nan")
    with pytest.raises(ValueError, match=r"must be finite.*its samples, terms and norms are in"):
        make_trainer(tmp_path, data=data, loss="plain").train()
    assert len(json.loads((tmp_path / "not-finite-step-1.json").read_text())["batches"][0]) == 4
