"""Pairs that do not fit: another width, resolution, patch, family or vocabulary, each model with its own inputs."""

import copy
from dataclasses import replace

import pytest
import tiny_families
import torch
from tiny_models import tiny_batch, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode

from switchkd.losses import dbild
from switchkd.models import Pathway
from switchkd.pairing import Pair, vocabulary
from switchkd.pairing.bridge import Bridge
from switchkd.types import answer_targets

ALL = frozenset({"student", "teacher", "switch"})
PARTS = ("vision", "projector", "language")
#: The student sees 9 tokens of width 48 in images of 24 pixels, the teacher 4 of width 32 in images of 16.
OTHER = {"width": 48, "image_size": 24, "vocabulary": 128}
IDS = (list(range(0, 128, 2)), list(range(20, 84)))


def make_pair(*, needs=ALL, vocabulary=IDS, bridge=True, student=OTHER):
    learner = Pathway(tiny_llava(seed=2, **student))
    learner.train_only(PARTS)
    teacher = Pathway(tiny_llava(hidden=40, depth=3, seed=1))
    torch.manual_seed(3)
    bridges = Bridge(student.get("width", 32), 32) if bridge else None
    return Pair(learner, teacher, needs=needs, vocabulary=vocabulary, bridge=bridges)


def two_readers(*, images=(1, 2, 0), seed=0):
    """The student's batch, with other images, other prompts and every second answer token in common with the teacher's."""
    batch = tiny_batch(images=images, image_size=24, seed=seed)
    batch["teacher"] = tiny_batch(images=images, padding_side="left", seed=seed + 1)
    places = torch.arange(0, len(answer_targets(batch["labels"])), 2)
    batch["aligned"] = torch.stack([places, places + 1], dim=1)[:-1]
    return batch


def test_each_route_reads_its_own_batch_and_what_is_compared_is_cut_out():
    pair, batch = make_pair().double(), two_readers()
    routes = pair(batch, ALL)
    ours, theirs = batch["aligned"].T
    student = pair.student.logits(pair.student.say(pair.student.see(batch), batch))
    torch.testing.assert_close(routes.student, student)
    torch.testing.assert_close(routes["student"], student[ours][:, IDS[0]])
    teacher = pair.teacher.model(**{k: v for k, v in batch["teacher"].items() if k != "labels"}).logits
    teacher = teacher[:, :-1][batch["teacher"]["labels"][:, 1:] != -100]
    torch.testing.assert_close(routes.teacher, teacher[theirs][:, IDS[1]], rtol=0, atol=1e-10)


def test_the_switch_goes_over_the_bridge():
    """Written out: the student's 3 x 3 features, interpolated to 2 x 2 and translated, in the place of the teacher's."""
    pair, batch = make_pair(), two_readers()
    seen = pair.student.see(batch)
    planes = seen.unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    planes = torch.nn.functional.interpolate(planes, size=(2, 2), mode="bilinear", antialias=True)
    features = planes.permute(0, 2, 3, 1).flatten(1, 2) @ pair.bridge.translate.weight.T + pair.bridge.translate.bias
    expected = pair.teacher.logits(pair.teacher.say(features, batch["teacher"]))
    found = pair(batch, ALL).switch
    torch.testing.assert_close(found, expected[batch["aligned"][:, 1]][:, IDS[1]], rtol=0, atol=1e-5)


def test_the_switch_gradient_reaches_vision_encoder_and_bridge_and_nothing_else():
    pair = make_pair().train()
    routes = pair(two_readers(), ALL)
    dbild(routes.switch, routes.teacher).sum().backward()
    tower = {id(p) for p in pair.student.part_parameters("vision").values() if p.requires_grad}
    tower |= {id(p) for p in pair.bridge.parameters()}
    for name, parameter in pair.named_parameters():
        if id(parameter) in tower:
            assert parameter.grad is not None, name
            assert "k_proj.bias" in name or torch.count_nonzero(parameter.grad) > 0, name
        else:
            assert parameter.grad is None, name


def test_one_model_that_reads_twice_has_nothing_to_teach():
    """Student = teacher, with a bridge that is the identity and another padding: every route says the same."""
    model = tiny_llava()
    student = Pathway(copy.deepcopy(model))
    student.train_only(PARTS)
    pair = Pair(student, Pathway(model), needs=ALL, vocabulary=96, bridge=Bridge(32, 32)).eval()
    batch = tiny_batch()
    batch["teacher"] = tiny_batch(padding_side="left")
    places = torch.arange(len(answer_targets(batch["labels"])))
    batch["aligned"] = torch.stack([places, places], dim=1)
    routes = pair(batch, ALL)
    assert routes.compared is None  # all of them
    assert torch.equal(routes.switch, routes.teacher)
    torch.testing.assert_close(routes.student, routes.teacher, rtol=0, atol=1e-5)


def test_the_bridge_is_in_no_file_of_the_student_and_the_teacher_in_none_at_all():
    pair = make_pair()
    assert pair.shared.weight is not None
    assert {name.split(".")[0] for name in pair.state_dict()} == {"student", "teacher", "bridge"}
    assert not any("bridge" in name for name in pair.student.state_dict())
    assert all(parameter.requires_grad for parameter in pair.bridge.parameters())
    assert make_pair(needs=frozenset({"student", "teacher"})).bridge is None


def test_text_alone_needs_no_bridge():
    pair, batch = make_pair(), two_readers(images=(0, 0))
    routes = pair(batch, ALL)
    assert torch.equal(routes.switch, routes.teacher)


def test_one_batch_for_two_readers_is_refused():
    pair, batch = make_pair(), two_readers()
    del batch["teacher"], batch["aligned"]
    with pytest.raises(
        ValueError, match=r"differ in visual tokens per image: 9 and 4.*own images and text.*PairCollator"
    ):
        pair(batch, ALL)
    assert pair(batch, frozenset({"student"})).teacher is None  # alone, the student can


def test_other_numbers_of_tiles_are_refused():
    pair, batch = make_pair(), two_readers()
    with pytest.raises(ValueError, match="the student sees 2 pictures in this batch and the teacher 3"):
        pair._across(pair.student.see(batch)[:2], batch, batch["teacher"])


def test_padding_rows_of_unequal_heads_are_not_compared():
    pair = make_pair(student={"vocabulary": 128}, vocabulary=90, bridge=False)
    routes = pair(tiny_batch(), ALL)
    assert routes.teacher.shape[-1] == routes.switch.shape[-1] == routes["student"].shape[-1] == 90
    assert routes.student.shape[-1] == 128


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (100, "the tokenizer has 100 ids but the teacher's head only 96 rows"),
        (([0, 128], [0, 1]), "the tokenizer has 129 ids but the student's head only 128 rows"),
        (([0, 1], [0, 96]), "the tokenizer has 97 ids but the teacher's head only 96 rows"),
    ],
)
def test_ids_without_a_row_are_refused(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        make_pair(student={"vocabulary": 128}, vocabulary=vocabulary, bridge=False)


def test_the_mass_that_is_dropped_is_that_of_the_other_rows(monkeypatch):
    monkeypatch.setattr(vocabulary, "_ROWS", 40)  # three blocks of the teacher's head, two of the shared rows
    pair = make_pair(student={"vocabulary": 128}, bridge=False)
    batch = tiny_batch()
    teacher = pair.teacher
    hidden = teacher.say(teacher.see(batch), batch)
    others = sorted(set(range(96)) - set(IDS[1]))
    expected = teacher.logits(hidden).softmax(-1)[:, others].sum(-1)
    assert expected.max() > 1e-3
    torch.testing.assert_close(pair.shared.dropped_mass(hidden, teacher.head), expected, rtol=0, atol=1e-5)
    # a softmax over the real ids is all there is where one tokenizer serves both, whatever the rows of padding
    for size in (90, 96):
        assert make_pair(student={}, vocabulary=size, bridge=False).dropped_mass(hidden) is None


def test_the_mass_that_is_dropped_widens_no_whole_head(monkeypatch):
    monkeypatch.setattr(vocabulary, "_ROWS", 16)
    pair = make_pair(student={"vocabulary": 128}, bridge=False).bfloat16()
    wide = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor) and found.dtype == torch.float32:
                wide.append(found.numel())
            return found

    with Watch():
        mass = pair.dropped_mass(torch.randn(5, 40, dtype=torch.bfloat16))
    assert 0 < mass.min() < mass.max() < 1
    assert max(wide) == 16 * 40  # of 96 x 40


def test_fitting_finds_the_features_of_the_same_encoder():
    """A student that is its teacher with features turned round: the bridge turns them back, and then z_SW = z_T."""
    model = tiny_llava(seed=1)
    student = Pathway(copy.deepcopy(model))
    student.train_only(PARTS)
    pair = Pair(student, Pathway(model), needs=ALL, vocabulary=96, bridge=Bridge(32, 32)).eval()
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    see = student.see
    student.see = lambda batch: see(batch) @ turn
    batches = [tiny_batch(seed=seed, images=(4,)) for seed in range(8)]
    student.train()
    assert pair.fit_bridge(batches) == pytest.approx(1, abs=1e-3)
    assert student.training
    seen = student.see(batches[0])
    (mapped,) = [pair._across(seen, batches[0], batches[0])]
    torch.testing.assert_close(mapped, pair.teacher.see(batches[0]), rtol=0, atol=0.05)


#: Student and teacher of two families: whole images, one grid each; patches in a row; any resolution.
FAMILIES = [("qwen2_5_vl", "llava-siglip-qwen2"), ("llava-siglip-qwen2", "qwen3_vl"), ("mistral3", "gemma3")]


@pytest.mark.parametrize(("ours", "theirs"), FAMILIES)
def test_two_families_meet_as_pictures(ours, theirs):
    student, teacher = Pathway(tiny_families.tiny(ours, seed=2)), Pathway(tiny_families.tiny(theirs, hidden=24, seed=1))
    student.train_only(PARTS)
    widths = [p.family.geometry(p.model.config)["feature width"] for p in (student, teacher)]
    pair = Pair(student, teacher, needs=ALL, vocabulary=90, bridge=Bridge(*widths)).train()
    sizes = [[(16, 16), (16, 16)], [(16, 16)], []]
    batch = tiny_families.batch_for(ours, sizes=sizes)
    batch["teacher"] = tiny_families.batch_for(theirs, sizes=sizes)
    places = torch.arange(len(answer_targets(batch["labels"])))
    batch["aligned"] = torch.stack([places, places], dim=1)
    routes = pair(batch, ALL)
    assert not torch.equal(routes.switch, routes.teacher)
    dbild(routes.switch, routes.teacher).sum().backward()
    reached = {name for name, p in student.part_parameters("vision").items() if p.requires_grad and p.grad is not None}
    assert reached == {name for name, p in student.part_parameters("vision").items() if p.requires_grad}
    assert pair.bridge.translate.weight.grad.abs().sum() > 0
    explained = pair.fit_bridge([batch])
    assert 0 < explained <= 1
    assert replace(routes).ids is None
