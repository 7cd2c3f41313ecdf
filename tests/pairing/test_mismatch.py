"""Pairs that do not fit: another width, resolution, patch, family or vocabulary, each model with its own inputs."""

import copy

import pytest
import tiny_families
import torch
from pairs import ALIGN, ALL, PARTS, assert_gradient_on_exactly, compared, own_logits
from tiny_models import plain_logits, read_alike, read_apart, tiny_batch, tiny_inputs, tiny_llava
from torch.utils._python_dispatch import TorchDispatchMode

from switchkd.batch import TEACHER
from switchkd.losses import dbild
from switchkd.models import Pathway
from switchkd.pairing import Pair, vocabulary
from switchkd.pairing.bridge import Bridge

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
    """Other images and prompts for each model; every second answer token of the student is in common with the teacher's next one."""
    student = tiny_inputs(images=images, image_size=24, seed=seed)
    teacher = tiny_inputs(images=images, seed=seed + 1)
    places = [(place, place + 1) for place in range(0, len(student.targets), 2)][:-1]
    return read_apart(student, teacher, places, columns=[place % len(IDS[0]) for place, _ in places])


def test_each_model_reads_its_own_inputs_and_what_is_compared_is_cut_out():
    pair, batch = make_pair().double(), two_readers()
    logits = compared(pair, batch)
    aligned = batch.shared[TEACHER]
    assert len(aligned.student) > 3
    student = plain_logits(pair.student.model, batch.student)
    torch.testing.assert_close(logits.whole, student, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits.student, student[aligned.student][:, IDS[0]], rtol=0, atol=1e-10)
    teacher = plain_logits(pair.teacher.model, batch.readers[TEACHER])
    torch.testing.assert_close(logits.teacher, teacher[aligned.reader][:, IDS[1]], rtol=0, atol=1e-10)
    assert torch.equal(logits.targets, aligned.targets)
    assert torch.equal(logits.term(logits.targets.double()).answers, aligned.student)


def test_the_switch_goes_over_the_bridge():
    """Written out: the student's 3 x 3 features, interpolated to 2 x 2 and translated, in the place of the teacher's."""
    pair, batch = make_pair(), two_readers()
    seen = pair.student.see(batch.student)
    planes = seen.unflatten(1, (3, 3)).permute(0, 3, 1, 2)
    planes = torch.nn.functional.interpolate(planes, size=(2, 2), mode="bilinear", antialias=True)
    features = planes.permute(0, 2, 3, 1).flatten(1, 2) @ pair.bridge.translate.weight.T + pair.bridge.translate.bias
    expected = pair.teacher.logits(pair.teacher.say(features, batch.readers[TEACHER]))
    expected = expected[batch.shared[TEACHER].reader][:, IDS[1]]
    torch.testing.assert_close(compared(pair, batch).switch, expected, rtol=0, atol=1e-5)


def test_the_switch_gradient_reaches_vision_encoder_and_bridge_and_nothing_else():
    pair = make_pair().train()
    logits = compared(pair, two_readers())
    dbild(logits.switch, logits.teacher).sum().backward()
    tower = pair.student.part_parameters("vision").values()
    assert_gradient_on_exactly((*tower, *pair.bridge.parameters()), pair)


def test_one_model_that_reads_twice_has_nothing_to_teach():
    """Student = teacher, with a bridge that is the identity and inputs of its own: every pathway says the same."""
    model = tiny_llava()
    student = Pathway(copy.deepcopy(model))
    student.train_only(PARTS)
    pair = Pair(student, Pathway(model), needs=ALL, vocabulary=96, bridge=Bridge(32, 32)).eval()
    inputs, copied = tiny_inputs(), tiny_inputs()
    batch = read_apart(inputs, copied, [(place, place) for place in range(len(inputs.targets))])
    logits = compared(pair, batch)
    assert logits.answers is None  # all of them
    assert torch.equal(logits.switch, logits.teacher)
    torch.testing.assert_close(logits.student, logits.teacher, rtol=0, atol=1e-5)


def test_the_bridge_is_in_no_file_of_the_student_and_the_teacher_in_none_at_all():
    pair = make_pair()
    assert pair.shared.weight is not None
    assert {name.split(".")[0] for name in pair.state_dict()} == {"student", "teacher", "bridge"}
    assert not any("bridge" in name for name in pair.student.state_dict())
    assert all(parameter.requires_grad for parameter in pair.bridge.parameters())
    assert make_pair(needs=ALIGN).bridge is None


def test_text_alone_needs_no_bridge():
    logits = compared(make_pair(), two_readers(images=(0, 0)))
    assert torch.equal(logits.switch, logits.teacher)


def test_one_reading_for_two_models_that_differ_is_refused():
    batch = read_alike(two_readers().student)
    with pytest.raises(ValueError, match=r"differ in visual tokens per image: 9 and 4.*own images and text.*`Reader`"):
        make_pair()(batch)
    assert not make_pair(needs=frozenset({"student"}))(batch).compared  # alone, the student can


def test_other_numbers_of_tiles_are_refused():
    pair = make_pair()
    two, three = tiny_inputs(images=(1, 1), image_size=24), tiny_inputs(images=(1, 2))
    with pytest.raises(ValueError, match="the student sees 2 pictures in this batch and the teacher 3"):
        pair(read_apart(two, three, [(0, 0), (1, 1)], columns=[0, 1]))


def test_padding_rows_of_unequal_heads_are_not_compared():
    pair = make_pair(student={"vocabulary": 128}, vocabulary=90, bridge=False)
    logits = compared(pair, tiny_batch())
    assert logits.teacher.shape[-1] == logits.switch.shape[-1] == logits.student.shape[-1] == 90
    assert logits.whole.shape[-1] == 128


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
    batch = read_alike(tiny_inputs())
    batch.shared[TEACHER] = batch.shared[TEACHER]._replace(targets=torch.zeros_like(batch.student.targets))
    others = sorted(set(range(96)) - set(IDS[1]))
    expected = own_logits(pair.teacher, batch.student).softmax(-1)[:, others].sum(-1)
    assert expected.max() > 1e-3
    torch.testing.assert_close(pair.dropped_mass(pair(batch)), expected, rtol=0, atol=1e-5)
    # a softmax over the real ids is all there is where one tokenizer serves both, whatever the rows of padding
    for size in (90, 96):
        same = make_pair(student={}, vocabulary=size, bridge=False)
        assert same.dropped_mass(same(tiny_batch())) is None


def test_the_mass_that_is_dropped_widens_no_whole_head(monkeypatch):
    monkeypatch.setattr(vocabulary, "_ROWS", 16)
    pair = make_pair(student={"vocabulary": 128}, bridge=False).bfloat16()
    wide = []

    class WideResults(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                wide.append(result.numel())
            return result

    with WideResults():
        mass = pair.shared.dropped_mass(torch.randn(5, 40, dtype=torch.bfloat16), pair.teacher.head)
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
    student.see = lambda inputs: see(inputs) @ turn
    batches = [tiny_batch(seed=seed, images=(4,)) for seed in range(8)]
    student.train()
    assert pair.fit_bridge(batches) == pytest.approx(1, abs=1e-3)
    assert student.training
    crossed = pair.cross(student.see(batches[0].student), batches[0])
    torch.testing.assert_close(crossed, pair.teacher.see(batches[0].student), rtol=0, atol=0.05)


#: Student and teacher of two families: whole images, one grid each; patches in a row; any resolution.
FAMILIES = [("qwen2_5_vl", "llava-siglip-qwen2"), ("llava-siglip-qwen2", "qwen3_vl"), ("mistral3", "gemma3")]


@pytest.mark.parametrize(("learning", "teaching"), FAMILIES)
def test_two_families_meet_as_pictures(learning, teaching):
    student = Pathway(tiny_families.tiny(learning, seed=2))
    teacher = Pathway(tiny_families.tiny(teaching, hidden=24, seed=1))
    student.train_only(PARTS)
    widths = [pathway.family.geometry.feature_width for pathway in (student, teacher)]
    pair = Pair(student, teacher, needs=ALL, vocabulary=90, bridge=Bridge(*widths)).train()
    sizes = [[(16, 16), (16, 16)], [(16, 16)], []]
    first, second = (tiny_families.inputs_for(name, sizes=sizes) for name in (learning, teaching))
    batch = read_apart(first, second, [(place, place) for place in range(len(first.targets))])
    logits = compared(pair, batch)
    assert not torch.equal(logits.switch, logits.teacher)
    assert logits.ids is None
    dbild(logits.switch, logits.teacher).sum().backward()
    reached = {name for name, p in student.part_parameters("vision").items() if p.requires_grad and p.grad is not None}
    assert reached == {name for name, p in student.part_parameters("vision").items() if p.requires_grad}
    assert pair.bridge.translate.weight.grad.abs().sum() > 0
    explained = pair.fit_bridge([batch])
    assert 0 < explained <= 1
