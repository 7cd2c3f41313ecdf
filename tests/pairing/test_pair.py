"""The visual switch: where its gradient goes, when it vanishes, and which pairs are refused."""

import copy

import pytest
import torch
from pairs import ALIGN, ALL, PARTS, assert_gradient_on_exactly, compared, make_pair, own_logits
from tiny_models import BUILDS, VOCABULARY, plain_logits, read_alike, tiny_batch, tiny_inputs, tiny_llava

from switchkd.batch import TEACHER
from switchkd.losses import dbild
from switchkd.models import Pathway
from switchkd.pairing import Pair


@pytest.mark.parametrize(("vision", "language"), BUILDS)
def test_teacher_equal_to_student_gives_the_switch_nothing_to_teach(vision, language):
    model = tiny_llava(vision, language)
    student = Pathway(copy.deepcopy(model))
    student.train_only(PARTS)
    logits = compared(Pair(student, Pathway(model), needs=ALL, vocabulary=VOCABULARY).eval(), tiny_batch())
    assert torch.equal(logits.switch, logits.teacher)
    term = dbild(logits.switch, logits.teacher)
    assert torch.equal(term, torch.zeros_like(term))
    term.sum().backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients)


@pytest.mark.parametrize(("vision", "language"), BUILDS)
def test_the_switch_gradient_reaches_the_vision_encoder_and_nothing_else(vision, language):
    logits = compared(pair := make_pair(vision, language).train(), tiny_batch())
    dbild(logits.switch, logits.teacher).sum().backward()
    assert_gradient_on_exactly((p for module in pair.student.part("vision") for p in module.parameters()), pair)


def test_the_switch_is_the_teacher_speaking_about_what_the_student_sees():
    pair = make_pair().double()
    batch = tiny_batch()
    chimera = copy.deepcopy(pair.teacher.model)
    chimera.model.vision_tower.load_state_dict(pair.student.model.model.vision_tower.state_dict())
    expected = plain_logits(chimera, batch.student)
    torch.testing.assert_close(compared(pair, batch).switch, expected, rtol=0, atol=1e-11)


def test_the_teacher_never_trains():
    pair = make_pair()
    pair.train()
    assert pair.student.model.training
    assert not any(module.training for module in pair.teacher.modules())
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())
    assert compared(pair, tiny_batch()).teacher.requires_grad is False


def test_signals_have_hidden_states_whose_logits_are_compared():
    pair, batch = make_pair(), tiny_batch()
    signals = pair(batch)
    compared_signals = signals.compared[TEACHER]
    assert signals.student.hidden.shape[1] == signals.student.head.weight.shape[1] == 24
    assert compared_signals.teacher.hidden.shape[1] == compared_signals.switch.hidden.shape[1] == 40
    assert compared_signals.teacher.hidden.requires_grad is False
    assert compared_signals.switch.hidden.requires_grad
    logits = signals.logits()
    assert torch.equal(logits.student, own_logits(pair.student, batch.student))
    assert torch.equal(logits.compared[TEACHER].teacher, own_logits(pair.teacher, batch.student))
    assert torch.equal(logits.targets, batch.student.targets)


def calls_of(tower):
    """How often a vision encoder ran, as a list that grows."""
    calls = []
    tower.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_the_students_vision_encoder_runs_once_for_student_and_switch():
    pair = make_pair().train()
    student, teacher = (calls_of(pathway.part("vision")[0]) for pathway in (pair.student, pair.teacher))
    pair(tiny_batch())
    assert (len(student), len(teacher)) == (1, 1)


def test_pathways_that_nobody_needs_are_not_run():
    pair = make_pair(needs=frozenset({"student"}))
    pair.teacher.see = pair.teacher.say = None  # calling either would raise
    assert not pair(tiny_batch()).compared
    with pytest.raises(LookupError, match="the switch was not run: the method does not name it in `needs`"):
        compared(make_pair(needs=ALIGN), tiny_batch()).of("switch")


def test_a_batch_without_a_reading_of_the_teachers_says_how_to_make_one():
    batch = tiny_batch()._replace(readers={}, shared={})
    with pytest.raises(ValueError, match=r"the batch has nothing for the teacher to read: make it with a `Collator`"):
        make_pair()(batch)
    assert not make_pair(needs=frozenset({"student"}))(batch).compared


def test_padding_rows_of_the_head_are_not_compared():
    teacher, student = tiny_llava(seed=1), tiny_llava(seed=2)
    logits = compared(Pair(Pathway(student), Pathway(teacher), needs=ALL, vocabulary=90), tiny_batch())
    assert logits.teacher.shape[-1] == logits.switch.shape[-1] == logits.student.shape[-1] == 90
    assert logits.whole.shape[-1] == 96


def test_a_batch_without_images_runs_and_the_switch_is_the_teacher():
    logits = compared(make_pair(), tiny_batch(images=(0, 0)))
    assert torch.equal(logits.switch, logits.teacher)


def test_bf16_teacher_and_float32_student_meet():
    pair, inputs = make_pair(), tiny_inputs()
    exact = compared(pair, read_alike(inputs))
    pair.teacher.to(torch.bfloat16)
    rounded = compared(pair, read_alike(inputs))
    assert rounded.teacher.dtype == rounded.switch.dtype == torch.float32
    rounded_images = {"pixel_values": inputs.images["pixel_values"].bfloat16()}
    plain = plain_logits(pair.teacher.model, inputs._replace(media={"image": rounded_images}))
    assert (rounded.teacher - exact.teacher).norm() <= 1.01 * (plain - exact.teacher).norm()
    # the head runs in float32: more distinct values than bf16 could hold in this range
    assert rounded.teacher[0].unique().numel() == rounded.teacher.shape[1]


REFUSED = [
    ({"width": 48}, ALL, r"feature width: 48 and 32 \(translated by a linear layer\): give the pair a bridge"),
    ({"image_size": 24}, ALL, "visual tokens per image: 9 and 4 .*: give the pair a bridge"),
]


@pytest.mark.parametrize(("student", "needs", "message"), REFUSED)
def test_a_pair_that_does_not_fit_is_refused_with_both_numbers(student, needs, message):
    with pytest.raises(ValueError, match=f"student and teacher differ in {message}"):
        make_pair(needs=needs, **student)


@pytest.mark.parametrize("rows", [96, 128])  # equal heads may be padded too, as those of Qwen2.5 are
def test_heads_are_not_compared_before_their_real_rows_are_known(rows):
    student, teacher = Pathway(tiny_llava(vocabulary=rows)), Pathway(tiny_llava())
    with pytest.raises(
        ValueError,
        match=rf"the heads' {rows} \(student\) and 96 \(teacher\).*pass vocabulary=len\(processor.tokenizer\)",
    ):
        Pair(student, teacher, needs=ALIGN)
    Pair(student, teacher, needs=frozenset({"student"}))


def test_another_feature_width_is_fine_without_the_switch():
    assert make_pair(width=48, needs=ALIGN).teacher is not None


def test_a_frozen_vision_encoder_is_refused_where_the_switch_is_needed():
    with pytest.raises(
        ValueError, match=r"vision encoder is frozen \(0 of \d+ parameters train\).*add vision to the stage"
    ):
        make_pair(train=("projector", "language"))
    make_pair(train=("projector", "language"), needs=ALIGN)


def test_a_method_that_needs_a_missing_teacher_is_refused():
    with pytest.raises(ValueError, match="needs the routes student, teacher, but there is no teacher"):
        Pair(Pathway(tiny_llava()), None, needs=ALIGN)


def test_more_token_ids_than_head_rows_are_refused():
    with pytest.raises(ValueError, match="the tokenizer has 97 ids but the student's head only 96 rows"):
        Pair(Pathway(tiny_llava()), None, needs=frozenset({"student"}), vocabulary=97)
