"""Language models in 8 and 4 bits, for real: bitsandbytes runs on the CPU too."""

import importlib.util
import shutil

import bitsandbytes as bnb
import pytest
import torch
from run_files import write_data, write_model, write_run
from safetensors.torch import load_file
from steps import NoProcessor
from tiny_families import BUILDS, inputs_for, tiny
from transformers import AutoModelForImageTextToText

from switchkd import distill
from switchkd.models import load_pathway
from switchkd.recipe.schema import load_recipe
from switchkd.train import checkpoint, lora


def gentle(name, folder):
    """A tiny model whose layers are wide enough for blocks of 64 weights, and not so wild that rounding them changes everything."""
    model = tiny(name, hidden=64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.4)
    model.save_pretrained(folder)


LAYERS = {"8bit": bnb.nn.Linear8bitLt, "4bit": bnb.nn.Linear4bit}


@pytest.mark.parametrize("bits", LAYERS)
@pytest.mark.parametrize(
    "name", [name for name in BUILDS if name in ("llava-siglip-qwen2", "qwen2_5_vl", "idefics3", "gemma3")]
)
def test_only_the_linear_layers_of_the_language_model_are_quantised(name, bits, tmp_path):
    gentle(name, tmp_path)
    plain, small = load_pathway(tmp_path), load_pathway(tmp_path, quantization=bits)
    quantised = {path for path, module in small.model.named_modules() if isinstance(module, LAYERS[bits])}
    body = next(path for path, module in plain.model.named_modules() if module is plain.part("language")[0])
    linear = {path for path, module in plain.model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert quantised == {path for path in linear if path.startswith(f"{body}.")}
    assert len(quantised) == 7 * 3
    assert isinstance(small.model.get_output_embeddings(), torch.nn.Linear)
    assert "lm_head" not in quantised
    inputs = inputs_for(name)
    rounded, exact = (pathway.logits(pathway.say(pathway.see(inputs), inputs)) for pathway in (small, plain))
    assert (rounded - exact).abs().max() > 1e-4  # rounded
    assert (
        torch.nn.functional.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > 0.9
    )  # and still the same model


@pytest.mark.parametrize("bits", LAYERS)
def test_the_switch_sends_gradients_through_a_quantised_teacher(bits, tmp_path):
    name = "llava-siglip-qwen2"
    gentle(name, tmp_path)
    inputs = inputs_for(name)
    plain, small = load_pathway(tmp_path), load_pathway(tmp_path, quantization=bits)
    gradients = []
    for teacher in (plain, small):
        with torch.no_grad():  # as when the teacher gave its own logits
            teacher.say(teacher.see(inputs), inputs)
        seen = plain.see(inputs).detach().requires_grad_()
        teacher.requires_grad_(False).say(seen, inputs).float().square().mean().backward()
        gradients.append(seen.grad)
    cosine = torch.nn.functional.cosine_similarity(gradients[0].flatten(), gradients[1].flatten(), dim=0)
    assert cosine > 0.9


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_run(folder)
    for name, seed in (("teacher", 1), ("student", 2)):
        write_model(folder / name, seed=seed, hidden=64)
    write_data(folder / "data" / "train.json", 8)
    return folder


QLORA = [
    "--student.lora.r",
    "4",
    "--student.quantization",
    "4bit",
    "--teacher.quantization",
    "8bit",
    "--train.learning_rate",
    "1e-2",
]


@pytest.mark.long
def test_qlora_trains_adapters_on_four_bits_and_saves_a_plain_student(files):
    recipe = load_recipe(files / "recipe.yaml", [*QLORA, "--train.max_steps", "2", "--train.save_steps", "1"])
    student = distill(recipe).folder
    start, saved = (load_file(folder / "model.safetensors") for folder in (files / "student", student))
    assert saved.keys() == start.keys()
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    for name, tensor in saved.items():
        assert torch.isfinite(tensor).all()
        adapted = ".layers." in name and "language_model" in name and "proj.weight" in name
        if adapted:  # rounded to 16 values a block, and trained
            assert 0 < (tensor - start[name]).abs().max() < 0.3, name
        elif "language_model" in name or "lm_head" in name:
            assert torch.equal(tensor, start[name]), name
    assert any(not torch.equal(saved[name], start[name]) for name in saved if "vision_tower" in name)
    model = AutoModelForImageTextToText.from_pretrained(student)
    assert "quantization_config" not in model.config.to_dict()
    # resuming from the middle ends at the same weights
    shutil.rmtree(files / "run" / "1-train" / "checkpoint-2")
    shutil.rmtree(student)
    again = load_file(distill(recipe).folder / "model.safetensors")
    assert all(torch.equal(again[name], saved[name]) for name in saved)


def test_qlora_saves_the_weights_it_was_trained_with(files, tmp_path):
    student = load_pathway(files / "student", dtype="float32", quantization="4bit")
    lora.add(student, r=4, alpha=8, dropout=0.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in student.model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.1)
    checkpoint.save_student(student, NoProcessor(), "", tmp_path)
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path)
    ids = torch.randint(10, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            plain(input_ids=ids).logits, student.model(input_ids=ids).logits, rtol=1e-3, atol=1e-3
        )


def test_without_bitsandbytes_the_command_that_installs_it_is_named(files, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(
        ValueError, match=r"quantization 8bit needs bitsandbytes, which is not installed: pip install bitsandbytes"
    ):
        load_pathway(files / "teacher", quantization="8bit")
