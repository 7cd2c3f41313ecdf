"""The family suite: everything that the project promises of a family, held against plain Hugging Face code on tiny random models.

`pytest tests/models/test_families.py` runs it on every build of `tiny_families.BUILDS`; a new family is one more entry there.
"""

import copy
import inspect
from dataclasses import fields

import pytest
import torch
from capabilities import BF16_ATTENTION
from pairs import ALL, PARTS, assert_gradient_on_exactly, compared, own_logits
from steps import NoProcessor
from tiny_families import BUILDS, IMAGE_TOKEN, SIZES, VOCABULARY, batch_for, inputs_for, tiny
from tiny_models import plain_logits
from transformers import AutoModelForImageTextToText, TrainingArguments

from switchkd.losses import dbild
from switchkd.methods import SwitchKD
from switchkd.models import Pathway
from switchkd.models.families import FAMILIES, LABELS, Geometry, family_of
from switchkd.models.layers import recompute
from switchkd.pairing import Pair
from switchkd.train.step import DistillationStep
from switchkd.train.trainer import DistillationTrainer

TEXT_ONLY = [[], []]
every_family = pytest.mark.parametrize("name", BUILDS)


def make_pair(name, *, train=PARTS):
    """Teacher and student with language models of different width and depth."""
    student = Pathway(tiny(name, seed=2))
    student.train_only(train)
    return Pair(student, Pathway(tiny(name, hidden=32, depth=4, seed=1)), needs=ALL, vocabulary=VOCABULARY)


def test_every_family_has_a_build():
    assert {BUILDS[name].config(16, 1).model_type for name in BUILDS} == set(FAMILIES)


@every_family
@pytest.mark.parametrize("sizes", [SIZES, TEXT_ONLY], ids=["images", "text"])
def test_padding_on_the_right_needs_a_mask_only_where_the_family_says_so(name, sizes):
    """Without a mask attention runs in its fast causal form. It says the same unless tokens see what follows them, as in PaliGemma."""
    model, inputs = tiny(name).double(), inputs_for(name, sizes=sizes)
    mask = inputs.is_text().long()
    assert not mask.all()
    given = {"input_ids": inputs.tokens, **inputs.types, **(inputs.images or {})}
    with torch.no_grad():
        masked, unmasked = (
            model.model(**given, attention_mask=each).last_hidden_state.flatten(0, 1)[inputs.predicts]
            for each in (mask, None)
        )
    gap = (masked - unmasked).abs().max()
    if family_of(model.config).padding_mask:
        assert gap > 1e-3
    else:
        assert gap <= 1e-12


@every_family
def test_logits_are_those_of_the_plain_model(name):
    """Of samples with several images, one and none, padded; the plain model is given a mask for its padding."""
    model, inputs = tiny(name).double(), inputs_for(name)
    expected = plain_logits(model, inputs)
    assert expected.std() > 0.5
    torch.testing.assert_close(own_logits(Pathway(model), inputs), expected, rtol=0, atol=1e-10)


@every_family
def test_logits_of_samples_without_images_are_those_of_the_plain_model(name):
    model, inputs = tiny(name).double(), inputs_for(name, sizes=TEXT_ONLY)
    pathway = Pathway(model)
    assert pathway.see(inputs) is None
    torch.testing.assert_close(own_logits(pathway, inputs), plain_logits(model, inputs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_picture_of_one_token_alone_in_a_batch_is_read(name):
    """transformers 5.23 takes the one token of Mistral 3 for a vector of numbers of tokens: the pathway prepares the model."""
    pathway, inputs = Pathway(tiny(name).double()), inputs_for(name, sizes=[[(8, 8)]])
    assert int((inputs.tokens == IMAGE_TOKEN).sum()) == 1
    logits = own_logits(pathway, inputs)
    assert logits.shape == (5, VOCABULARY)
    assert Pathway(pathway.model).see(inputs) is not None  # prepared twice
    torch.testing.assert_close(logits, plain_logits(pathway.model, inputs), rtol=0, atol=1e-10)


@every_family
def test_on_several_ranks_samples_without_images_run_every_layer_and_change_nothing(name, monkeypatch):
    pair, batch = make_pair(name), batch_for(name, sizes=TEXT_ONLY)
    alone = compared(pair, batch)
    monkeypatch.setattr("switchkd.models.pathway._several_ranks", lambda: True)
    among_others = compared(pair, batch)
    assert all(torch.equal(among_others.of(route), alone.of(route)) for route in ALL)
    (among_others.whole.square().sum() + dbild(among_others.switch, among_others.teacher).sum()).backward()
    for part in ("vision", "projector"):
        for key, parameter in pair.student.part_parameters(part).items():
            if parameter.requires_grad:  # DDP waits for all of these
                assert parameter.grad is not None, key
                assert torch.count_nonzero(parameter.grad) == 0, key


@every_family
def test_the_images_reach_the_answers(name):
    pathway, inputs = Pathway(tiny(name)), inputs_for(name)
    flipped = {**inputs.images, "pixel_values": inputs.images["pixel_values"].flip(-1)}
    first, second = (own_logits(pathway, each) for each in (inputs, inputs._replace(media={"image": flipped})))
    changed = (first - second).abs().amax(dim=1) > 1e-4
    assert torch.equal(changed, inputs.sample < len(inputs.lengths) - 1)  # the last sample has no image


@every_family
def test_teacher_equal_to_student_gives_the_switch_nothing_to_teach(name):
    model = tiny(name)
    student = Pathway(copy.deepcopy(model))
    student.train_only(PARTS)
    logits = compared(Pair(student, Pathway(model), needs=ALL, vocabulary=VOCABULARY).eval(), batch_for(name))
    assert torch.equal(logits.switch, logits.teacher)
    term = dbild(logits.switch, logits.teacher)
    assert torch.equal(term, torch.zeros_like(term))


@every_family
def test_the_switch_is_the_teacher_with_the_vision_encoder_of_the_student(name):
    pair = make_pair(name).double()
    batch = batch_for(name)
    chimera = copy.deepcopy(pair.teacher.model)
    replaced = pair.teacher.family.parameters(chimera, "vision")
    for key, parameter in pair.student.part_parameters("vision").items():
        replaced[key].data.copy_(parameter)
    torch.testing.assert_close(compared(pair, batch).switch, plain_logits(chimera, batch.student), rtol=0, atol=1e-10)


@every_family
def test_the_switch_gradient_reaches_the_vision_encoder_and_nothing_else(name):
    pair = make_pair(name).train()
    logits = compared(pair, batch_for(name))
    dbild(logits.switch, logits.teacher).sum().backward()
    assert_gradient_on_exactly(pair.student.part_parameters("vision").values(), pair)


@every_family
def test_parameters_that_stay_frozen_are_exactly_those_that_feed_nothing(name):
    model = tiny(name)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key != "lm_head.weight" and "text_model.lm_head" not in key)
    plain_logits(model, inputs_for(name)).square().sum().backward()
    without = {key for key, p in model.named_parameters() if p.grad is None and p.requires_grad}
    pathway = Pathway(model)
    pathway.train_only(PARTS)
    frozen = {key for key, p in model.named_parameters() if not p.requires_grad}
    assert frozen == without


@every_family
def test_the_parts_are_the_whole_model(name):
    pathway = Pathway(tiny(name))
    parts = [{id(p) for p in pathway.part_parameters(part).values()} for part in pathway.family.parts]
    assert sum(map(len, parts)) == len(set().union(*parts))  # no parameter is in two
    assert set().union(*parts) == {id(p) for p in pathway.model.parameters()}


@every_family
def test_geometry_says_what_features_and_grids_will_be(name):
    pathway, inputs = Pathway(tiny(name)), inputs_for(name)
    family, geometry = pathway.family, pathway.family.geometry
    features = pathway.see(inputs)
    assert features.shape[-1] == geometry.feature_width
    assert geometry.vocabulary_rows == pathway.head.rows
    assert geometry.image_token_id == IMAGE_TOKEN
    image_tokens = (inputs.tokens == IMAGE_TOKEN).sum().item()
    if geometry.merge_size is not None:
        assert image_tokens * geometry.merge_size**2 == len(features)
    elif not name.startswith(("llava_next", "llava_onevision")):  # their packing adds newlines and leaves padding out
        each = geometry.tokens_per_image or geometry.tokens_per_tile
        assert image_tokens == len(features) * each
    grids = family.to_grids(features, inputs.images)
    assert [tuple(grid.shape[:2]) for grid in grids] == family.grid_shapes(inputs.images)
    assert all(grid.shape[-1] == geometry.feature_width for grid in grids)
    assert torch.equal(family.from_grids(grids, inputs.images), features)


def test_every_size_has_a_label():
    assert set(LABELS) == {field.name for field in fields(Geometry)}


@every_family
def test_gradient_checkpointing_changes_no_gradient(name):
    def gradients(checkpointing):
        pair = make_pair(name, train=("vision",)).double()
        if checkpointing:
            pair.student.model.activation_checkpointing_enable({"use_reentrant": False})
            recompute(pair.teacher.part("language"))  # which is in eval mode, where transformers' own does nothing
        pair.train()
        logits = compared(pair, batch_for(name))
        (logits.whole.square().sum() + dbild(logits.switch, logits.teacher).sum()).backward()
        return {key: p.grad for key, p in pair.student.part_parameters("vision").items() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-9, atol=1e-9, msg=key)


@every_family
@pytest.mark.skipif(not BF16_ATTENTION, reason="torch's bf16 attention fails where AVX512 is there and switched off")
def test_a_bf16_teacher_and_a_float32_student_meet(name):
    pair, batch = make_pair(name), batch_for(name)
    exact = compared(pair, batch)
    pair.teacher.to(torch.bfloat16)
    rounded = compared(pair, batch)
    assert rounded.teacher.dtype == rounded.switch.dtype == torch.float32
    for route in ("teacher", "switch"):
        assert 0 < (rounded.of(route) - exact.of(route)).norm() < 0.1 * exact.of(route).norm()


@every_family
def test_a_training_step_and_the_saved_student(name, tmp_path):
    pair = make_pair(name)
    before = {key: p.clone() for key, p in pair.named_parameters()}
    batch = batch_for(name)
    method = SwitchKD(window=32)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        learning_rate=1e-2,
        optim="sgd",
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = DistillationTrainer(
        DistillationStep(pair, method),
        arguments,
        processor=NoProcessor(),
        card="",
        train_dataset=[{"row": 0}],
        data_collator=lambda rows: batch,
    )
    trainer.train()
    for key, parameter in pair.named_parameters():
        if "k_proj.bias" not in key:  # without rotary positions it has no effect
            assert torch.equal(parameter, before[key]) != parameter.requires_grad, key
    trainer.save_model(str(tmp_path / "student"))
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "student").eval()
    assert type(plain) is type(pair.student.model)
    torch.testing.assert_close(
        own_logits(pair.student.eval(), batch.student), plain_logits(plain, batch.student), rtol=0, atol=1e-5
    )


def test_the_grids_of_qwen_are_pictures():
    """Held against patches cut from the image by hand; the windows of Qwen2.5-VL and the merger's blocks shuffle them."""
    model = tiny("qwen2_5_vl")
    tower = model.model.visual
    tower.blocks = torch.nn.ModuleList()  # the features are the embedded patches then
    image = torch.randn(3, 24, 40)
    cut = image.view(3, 6, 4, 10, 4).permute(1, 3, 0, 2, 4)  # [rows, columns, channels, 4, 4]
    patches = cut.unsqueeze(3).expand(6, 10, 3, 2, 4, 4).flatten(2)  # the image twice: two frames
    order = torch.arange(60).view(3, 2, 5, 2).transpose(1, 2).flatten()  # as the image processor writes them
    media = {"pixel_values": patches.flatten(0, 1)[order], "image_grid_thw": torch.tensor([[1, 6, 10]])}
    family = family_of(model.config)
    features = family.see(model, media)
    (grid,) = family.to_grids(features, media)
    torch.testing.assert_close(grid.flatten(0, 1), tower.patch_embed(patches.flatten(0, 1)))
    assert not torch.equal(features, tower.patch_embed(media["pixel_values"]))  # there is something to put in order


def test_grids_of_another_size_are_refused():
    pathway, inputs = Pathway(tiny("qwen2_vl")), inputs_for("qwen2_vl")
    grids = pathway.family.to_grids(pathway.see(inputs), inputs.images)
    with pytest.raises(ValueError, match=r"the grids are \[\(4, 4\)\] patches.*, the images .* \[\(4, 4\), \(4, 8\)"):
        pathway.family.from_grids(grids[:1], inputs.images)


def test_the_class_token_has_no_place_in_a_grid():
    model = tiny("llava-clip-llama")
    model.config.vision_feature_select_strategy = "full"
    pathway, inputs = Pathway(model), inputs_for("llava-clip-llama")
    with pytest.raises(ValueError, match=r"15 visual features are no grids of 12 patches: a class token"):
        pathway.family.to_grids(pathway.see(inputs), inputs.images)


def test_every_layer_has_an_attention():
    for name in BUILDS:
        model = tiny(name, depth=2)
        family = family_of(model.config)
        assert len(family.layers(model)) == 2
        assert [family.attention(model, layer).layer_idx for layer in range(2)] == [0, 1], name


def test_what_families_ask_of_a_batch_is_what_transformers_takes():
    for name in BUILDS:
        model = tiny(name, depth=1)
        family = FAMILIES[model.config.model_type]
        assert set(family.image_inputs) <= set(inspect.signature(model.model.get_image_features).parameters), name
        assert set(family.language_context) <= set(inspect.signature(model.model.forward).parameters), name
