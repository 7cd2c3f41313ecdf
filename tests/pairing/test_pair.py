"""The visual switch: where its gradient goes, when it vanishes, and which pairs are refused."""

import copy

import pytest
import torch
from pairs import ALL, make_pair
from tiny_models import BUILDS, VOCABULARY, tiny_batch, tiny_llava

from switchkd.losses import dbild
from switchkd.models import Pathway
from switchkd.pairing import Pair


@pytest.mark.parametrize(("vision", "language"), BUILDS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_teacher_equal_to_student_gives_the_switch_nothing_to_teach(vision, language, padding_side):
    model = tiny_llava(vision, language)
    student = Pathway(copy.deepcopy(model))
    student.train_only(("vision", "projector", "language"))
    routes = Pair(student, Pathway(model), needs=ALL, vocabulary=VOCABULARY).eval()(
        tiny_batch(padding_side=padding_side), ALL
    )
    assert torch.equal(routes.switch, routes.teacher)
    term = dbild(routes.switch, routes.teacher)
    assert torch.equal(term, torch.zeros_like(term))
    term.sum().backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.count_nonzero(gradient) == 0 for gradient in gradients)


@pytest.mark.parametrize(("vision", "language"), BUILDS)
def test_the_switch_gradient_reaches_the_vision_encoder_and_nothing_else(vision, language):
    pair = make_pair(vision, language)
    pair.train()
    routes = pair(tiny_batch(), ALL)
    dbild(routes.switch, routes.teacher).sum().backward()
    tower = {id(p) for module in pair.student.part("vision") for p in module.parameters() if p.requires_grad}
    for name, parameter in pair.named_parameters():
        if id(parameter) in tower:
            assert parameter.grad is not None, name
            # softmax does not see a constant added to every key: its bias has no effect, whatever the loss
            assert "k_proj.bias" in name or torch.count_nonzero(parameter.grad) > 0, name
        else:
            assert parameter.grad is None, name


def test_the_switch_is_the_teacher_speaking_about_what_the_student_sees():
    pair = make_pair().double()
    batch = tiny_batch()
    chimera = copy.deepcopy(pair.teacher.model)
    chimera.model.vision_tower.load_state_dict(pair.student.model.model.vision_tower.state_dict())
    plain = chimera(**{key: value for key, value in batch.items() if key != "labels"}).logits
    expected = plain[:, :-1][batch["labels"][:, 1:] != -100]
    torch.testing.assert_close(pair(batch, ALL).switch, expected, rtol=0, atol=1e-11)


def test_the_teacher_never_trains():
    pair = make_pair()
    pair.train()
    assert pair.student.model.training
    assert not any(module.training for module in pair.teacher.modules())
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())
    assert pair(tiny_batch(), ALL).teacher.requires_grad is False


def test_finish_gets_hidden_states_whose_logits_are_the_routes():
    pair, batch = make_pair(), tiny_batch()
    routes = pair(batch, ALL)
    hidden, own = pair(batch, ALL, lambda hidden: (hidden, hidden.routes()))
    assert hidden.student.shape[1] == hidden.student_head.weight.shape[1] == 24
    assert hidden.teacher.shape[1] == hidden.switch.shape[1] == hidden.teacher_head.weight.shape[1] == 40
    assert hidden.teacher.requires_grad is False
    assert hidden.switch.requires_grad
    for name in ALL:
        assert torch.equal(own[name], routes[name])


def calls_of(tower):
    """How often a vision encoder ran, as a list that grows."""
    calls = []
    tower.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_the_students_vision_encoder_runs_once_for_student_and_switch():
    pair = make_pair().train()
    ours, theirs = (calls_of(pathway.part("vision")[0]) for pathway in (pair.student, pair.teacher))
    pair(tiny_batch(), ALL)
    assert (len(ours), len(theirs)) == (1, 1)


ALIGN = frozenset({"student", "teacher"})


def pair_with_one_encoder(vision="siglip", train=("projector", "language"), change=lambda student: None):
    """A student and a teacher with one vision encoder, the student's changed."""
    teacher, student = tiny_llava(vision, hidden=40, depth=3, seed=1), tiny_llava(vision, seed=2)
    student.model.vision_tower.load_state_dict(teacher.model.vision_tower.state_dict())
    change(student)
    learner = Pathway(student)
    learner.train_only(train)
    return Pair(learner, Pathway(teacher), needs=ALIGN, vocabulary=VOCABULARY).train()


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_one_frozen_vision_encoder_runs_once_for_student_and_teacher(vision):
    pair, batch = pair_with_one_encoder(vision), tiny_batch()
    own = pair.teacher.logits(pair.teacher.say(pair.teacher.see(batch), batch))
    ours, theirs = (calls_of(pathway.part("vision")[0]) for pathway in (pair.student, pair.teacher))
    assert torch.equal(pair(batch, ALIGN).teacher, own)
    assert (len(ours), len(theirs)) == (1, 0)
    assert pair(tiny_batch(images=(0, 0)), ALIGN).teacher is not None


def move_one_weight(student):
    student.model.vision_tower.encoder.layers[0].mlp.fc1.bias.data[3] += 1e-4


def take_another_layer(student):
    student.config.vision_feature_layer = -1


def drop_out(student):
    for layer in student.model.vision_tower.encoder.layers:
        layer.self_attn.dropout = 0.5


@pytest.mark.parametrize(
    "changed",
    [
        {"train": ("vision", "projector", "language")},
        {"change": move_one_weight},
        {"change": take_another_layer},
        {"change": drop_out},
        {"change": lambda student: student.double()},
    ],
    ids=["trains", "weight", "layer", "dropout", "precision"],
)
def test_vision_encoders_that_differ_run_both(changed):
    pair = pair_with_one_encoder(**changed)
    theirs = calls_of(pair.teacher.part("vision")[0])
    pair(tiny_batch(), ALIGN)
    assert len(theirs) == 1


def test_routes_that_nobody_needs_are_not_run():
    pair = make_pair()
    pair.teacher.see = pair.teacher.say = None  # calling either would raise
    routes = pair(tiny_batch(), frozenset({"student"}))
    with pytest.raises(LookupError, match="the switch route was not run"):
        routes["switch"]
    assert routes.teacher is None


def test_padding_rows_of_the_head_are_not_compared():
    teacher, student = tiny_llava(seed=1), tiny_llava(seed=2)
    routes = Pair(Pathway(student), Pathway(teacher), needs=ALL, vocabulary=90)(tiny_batch(), ALL)
    assert routes.teacher.shape[-1] == routes.switch.shape[-1] == routes["student"].shape[-1] == 90
    assert routes.student.shape[-1] == 96


def test_a_batch_without_images_runs_and_the_switch_is_the_teacher():
    pair = make_pair()
    routes = pair(tiny_batch(images=(0, 0)), ALL)
    assert torch.equal(routes.switch, routes.teacher)


def test_bf16_teacher_and_float32_student_meet():
    pair, batch = make_pair(), tiny_batch()
    exact = pair(batch, ALL)
    pair.teacher.to(torch.bfloat16)
    rounded = pair(batch, ALL)
    assert rounded.teacher.dtype == rounded.switch.dtype == torch.float32
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    plain = pair.teacher.model(**inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}).logits
    plain = plain[:, :-1][batch["labels"][:, 1:] != -100]
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
    assert make_pair(width=48, needs=frozenset({"student", "teacher"})).teacher is not None


def test_a_frozen_vision_encoder_is_refused_where_the_switch_is_needed():
    with pytest.raises(
        ValueError, match=r"vision encoder is frozen \(0 of \d+ parameters train\).*add vision to the stage"
    ):
        make_pair(train=("projector", "language"))
    make_pair(train=("projector", "language"), needs=frozenset({"student", "teacher"}))


def test_a_method_that_needs_a_missing_teacher_is_refused():
    with pytest.raises(ValueError, match="needs the routes student, teacher, but there is no teacher"):
        Pair(Pathway(tiny_llava()), None, needs=frozenset({"student", "teacher"}))


def test_more_token_ids_than_head_rows_are_refused():
    with pytest.raises(ValueError, match="the tokenizer has 97 ids but the student's head only 96 rows"):
        Pair(Pathway(tiny_llava()), None, needs=frozenset({"student"}), vocabulary=97)
