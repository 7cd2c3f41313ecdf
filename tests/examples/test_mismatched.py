"""Students that differ from the shipped teacher: what they are made of, and what of them needs a bridge."""

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from examples.world_weights import mismatched
from examples.world_weights.packing import cell_labels, patch_labels
from switchkd.models import load_pathway
from switchkd.pairing import compatibility
from switchkd.world import student_path, teacher_path
from switchkd.world.write import samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mismatched") / "student"
    mismatched.write("all", folder, tower_steps=2, projector_steps=2)
    return folder


@pytest.mark.long
def test_it_shares_nothing_with_the_teacher_and_fits_over_a_bridge(folder):
    student, teacher = load_pathway(folder), load_pathway(teacher_path())
    differences = compatibility.compare(student.family, teacher.family)
    bridged = {one.what for one in differences if one.verdict == "bridge"}
    assert compatibility.WIDTH in bridged
    assert len(bridged) > 1
    assert student.family.geometry.feature_width == mismatched.STUDENTS["all"].eyes.width
    words, others = (AutoTokenizer.from_pretrained(path) for path in (folder, teacher_path()))
    assert words.get_vocab() != others.get_vocab()
    assert words.decode(words("a red circle").input_ids) == "a red circle"
    assert (
        AutoProcessor.from_pretrained(folder).image_processor.size["height"]
        == mismatched.STUDENTS["all"].eyes.image_size
    )


#: In which a student differs from the teacher, and whether it reads with the teacher's tokenizer.
PARTS = {
    "width": ({"feature width"}, True),
    "tokens": ({"visual tokens per image", "grid side"}, True),
    "encoder": (set(), True),
    "tokenizer": (set(), False),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PARTS)
def test_a_student_differs_in_what_it_is_called(tmp_path, name):
    folder = tmp_path / name
    mismatched.write(name, folder, tower_steps=1, projector_steps=1)
    student, teacher = load_pathway(folder), load_pathway(teacher_path())
    differences = compatibility.compare(student.family, teacher.family)
    bridged = {one.what for one in differences if one.verdict == "bridge"}
    assert (bridged, same_words(folder)) == PARTS[name]
    eyes, usual = (
        LlavaForConditionalGeneration.from_pretrained(path).model.vision_tower.state_dict()
        for path in (folder, student_path())
    )
    shipped = eyes.keys() == usual.keys() and all(torch.equal(eyes[weight], usual[weight]) for weight in usual)
    assert shipped == (name == "tokenizer")


def same_words(folder):
    words, others = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (folder, teacher_path()))
    return words == others


@pytest.mark.long
def test_its_language_model_is_the_shipped_students_in_other_words(folder):
    made, old = (LlavaForConditionalGeneration.from_pretrained(path) for path in (folder, student_path()))
    layers, usual = made.model.language_model.state_dict(), old.model.language_model.state_dict()
    assert all(torch.equal(layers[name], usual[name]) for name in usual if "embed_tokens" not in name)
    tokenizer, words = (AutoTokenizer.from_pretrained(path) for path in (folder, student_path()))
    ids = words("red", add_special_tokens=False).input_ids
    new = tokenizer.convert_tokens_to_ids("▁red")
    assert mismatched.spelled(tokenizer, new, words) == ids
    assert torch.allclose(layers["embed_tokens.weight"][new], usual["embed_tokens.weight"][ids].mean(0))
    assert torch.allclose(made.lm_head.weight[new], old.lm_head.weight[ids].mean(0))


@pytest.mark.long
def test_its_eyes_are_pruned(folder):
    tower = LlavaForConditionalGeneration.from_pretrained(folder).model.vision_tower
    for name, weight in tower.named_parameters():
        if weight.ndim > 1 and "position" not in name:
            assert (weight == 0).float().mean() == pytest.approx(mismatched.PRUNED, abs=0.01), name


def test_a_patch_has_the_label_of_its_cell():
    scene, _, _ = next(samples(3, "train", "medium"))
    cells, patches = cell_labels([scene]), patch_labels([scene])
    for thing in scene.things:
        assert cells[0, thing.row, thing.column, 3:].tolist() == [thing.row, thing.column]
        assert cells[0, thing.row, thing.column, 1] > 0
    assert (cells[..., 0] > 0).sum() == len(scene.things)
    assert torch.equal(patches.reshape(1, 6, 6, 5)[:, ::2, ::2], cells)
    assert torch.equal(patches.reshape(1, 6, 6, 5)[:, 1::2, 1::2], cells)
