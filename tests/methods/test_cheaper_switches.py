"""switch_kd through a part of the teacher, and at a part of the steps."""

import oracles
import pytest
import torch
from inner_cases import IMAGES, make_pair, reached, samples, signals_of, written_out
from steps import make_trainer, read_metrics
from tiny_models import read_apart, tiny_batch, tiny_inputs, tiny_llava
from torch import nn

from switchkd.batch import TEACHER
from switchkd.losses import relative_error
from switchkd.methods import SFT, SwitchKD
from switchkd.models import Pathway
from switchkd.models.capture import Hidden, Projected, Switched, capture, of_samples
from switchkd.pairing import Pair
from switchkd.pairing.bridge import Bridge
from switchkd.train.step import DistillationStep

#: Layers of the teacher's language model.
DEPTH = 3


def partial(layers, **knobs):
    return SwitchKD(window=32, switch_layers=layers, **knobs)


def bridged(method):
    """A student that sees 9 tokens of width 48, a teacher that sees 4 of width 32, and the bridge; each reads its own text."""
    student = Pathway(tiny_llava(seed=2, width=48, image_size=24).double())
    student.train_only(("vision", "projector", "language"))
    teacher = Pathway(tiny_llava(hidden=40, depth=DEPTH, seed=1).double())
    torch.manual_seed(3)
    pair = Pair(student, teacher, needs=method.needs, vocabulary=90, bridge=Bridge(48, 32).double()).train()
    inputs = [tiny_inputs(images=IMAGES, image_size=size, seed=size) for size in (24, 16)]
    return pair, read_apart(*inputs, [(place, place) for place in range(3)])


def term(method, pair, batch):
    return method.sample_terms(pair(batch), None)["switch"]


# ---- the partial switch


def test_hand_computed():
    # Row 0: differences 1, 0, −2, 3, squares 14; the teacher's squares 1 + 1 + 4 + 4 = 10. 14 / 10 at weight 2: 2.8. Row 1 has nothing.
    site = Switched(1)
    student, teacher = samples([[2.0, 1.0], [0.0, 5.0]], []), samples([[1.0, 1.0], [2.0, 2.0]], [])
    found = partial(1, switch=2.0).sample_terms(written_out({site: student}, {site: teacher}, logits=3), None)
    assert found["switch"].tolist() == pytest.approx([2.8, 0.0], abs=1e-15)


def test_relative_error_oracle_and_properties():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    value = relative_error(student, teacher)
    expected = oracles.squared_error(student, teacher) / oracles.squared_error(torch.zeros_like(teacher), teacher)
    assert value.item() == pytest.approx(expected, abs=1e-13)
    assert relative_error(teacher, teacher).item() == 0
    assert relative_error(torch.zeros_like(teacher), teacher).item() == 1
    assert relative_error(3 * student, 3 * teacher).item() == pytest.approx(value.item(), abs=1e-13)
    assert torch.autograd.gradcheck(lambda x: relative_error(x, teacher), student.requires_grad_())
    assert relative_error(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("layers", range(DEPTH + 1))
def test_oracle_over_the_bridge(layers):
    """The whole teacher says what the student sees, and its hidden states are looked at from outside."""
    method = partial(layers, switch=0.5)
    pair, batch = bridged(method)
    reader, places = batch.readers[TEACHER], {}
    visual = reader.tokens == pair.teacher.family.image_token_id
    places["answers"] = torch.zeros_like(visual)
    places["answers"].flatten()[reader.predicts] = True
    # what enters the language model is behind no layer: there the answers' embeddings are the same, and are left out
    chosen = visual if layers == 0 else visual | places["answers"]
    states = []
    for seen in (pair.cross(pair.student.see(batch.student), batch), pair.teacher.see(reader)):
        kept = []
        hooks = [
            layer.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
            for layer in pair.teacher.family.layers(pair.teacher.model)
        ]
        entering = pair.teacher.model.model.language_model.register_forward_pre_hook(
            lambda module, inputs, keywords, kept=kept: kept.append(keywords["inputs_embeds"]), with_kwargs=True
        )
        pair.teacher.say(seen, reader)
        for hook in (*hooks, entering):
            hook.remove()
        assert len(kept) == DEPTH + 1
        states.append(kept[layers][0] if isinstance(kept[layers], tuple) else kept[layers])
    expected = []
    for row in range(len(IMAGES)):
        student, teacher = (state[row][chosen[row]] for state in states)
        error = oracles.squared_error(student, teacher)
        expected.append(0.5 * error / oracles.squared_error(torch.zeros_like(teacher), teacher) if error else 0.0)
    found = term(method, pair, batch)
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert found[2] == 0 < found[:2].min()
    found.sum().backward()
    learning = {name for name, p in pair.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.rsplit(".", 2)[0] for name in learning if "vision_tower" not in name} == {"bridge"}
    assert any("student" in name for name in learning)


@pytest.mark.parametrize("layers", [0, 1])
def test_the_term_trains_the_vision_encoder_and_nothing_else(layers):
    method = partial(layers)
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), None)["switch"].sum()) == {"vision"}


@pytest.mark.parametrize("layers", [0, 2])
def test_equal_encoders_have_nothing_to_learn(layers):
    method = partial(layers)
    pair = make_pair(method)
    pair.student.model.model.vision_tower.load_state_dict(pair.teacher.model.model.vision_tower.state_dict())
    assert term(method, pair, tiny_batch(images=IMAGES)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("layers", "runs"), [(None, 2 * DEPTH), (0, DEPTH), (1, DEPTH + 1), (DEPTH, 2 * DEPTH)])
def test_no_layer_runs_that_is_not_compared(layers, runs):
    method = partial(layers)
    pair, ran = make_pair(method), []
    language = pair.teacher.part("language")[0]
    for module in (*pair.teacher.family.layers(pair.teacher.model), pair.teacher.model.lm_head):
        module.register_forward_hook(lambda module, inputs, output: ran.append(module))
    whole = language.layers
    sums = DistillationStep(pair, method)(tiny_batch(images=IMAGES))
    sums.loss.backward()
    assert len([module for module in ran if not isinstance(module, nn.Linear)]) == runs
    assert language.layers is whole
    assert len(whole) == DEPTH
    assert ("knee_switch" in sums.statistics) == (layers is None)


def test_layers_come_back_where_a_run_fails():
    pair, batch = make_pair(partial(1)), tiny_batch(images=IMAGES)
    language = pair.teacher.part("language")[0]
    whole = language.layers

    def failing(module, inputs, output):
        if torch.is_grad_enabled():
            raise ZeroDivisionError

    whole[0].register_forward_hook(failing)
    with pytest.raises(ZeroDivisionError):
        pair(batch)
    assert language.layers is whole


def test_more_layers_than_the_teacher_has_are_refused_with_both_numbers():
    with pytest.raises(
        ValueError, match=r"through 4 layers of the teacher's language model, which has 3: set the method's switch_"
    ):
        make_pair(partial(DEPTH + 1))


def test_what_cannot_learn_and_what_does_not_fit_is_refused_as_for_the_whole_switch():
    with pytest.raises(
        ValueError, match=r"frozen \(0 of \d+ parameters train\) and the switch trains nothing else.*`switch: 0`"
    ):
        make_pair(partial(1), train=("projector", "language"))
    with pytest.raises(
        ValueError, match=r"feature width: 48 and 32 .*give the pair a bridge .*or set the method's switch to 0"
    ):
        make_pair(partial(0), width=48)


def test_a_whole_switch_and_a_part_of_it_are_one_pass():
    method = SwitchKD(window=32)
    pair = make_pair(method)
    pair.needs |= {Switched(1), Switched(2)}
    said = []
    plain_say = pair.teacher.say
    pair.teacher.say = lambda *given: said.append(torch.is_grad_enabled()) or plain_say(*given)
    both = pair(tiny_batch(images=IMAGES)).activations[TEACHER]
    assert said == [False, True]
    pair.needs = partial(2).needs
    alone = pair(tiny_batch(images=IMAGES)).activations[TEACHER]
    for one, other in zip(both.student[Switched(2)], alone.student[Switched(2)], strict=True):
        assert torch.equal(one, other)
    assert both.student.keys() == {Switched(1), Switched(2)}


def test_projected_features_are_what_enters_the_language_model():
    pathway, inputs = Pathway(tiny_llava()), tiny_inputs(images=IMAGES)
    seen, sites = pathway.see(inputs), frozenset({Switched(0), Projected(), Switched(2), Hidden(1.0, "visual")})
    with capture(pathway, seen, inputs, sites) as captured:
        pathway.say(seen, inputs)
    found = of_samples(captured, sites)
    assert all(map(torch.equal, found[Switched(0)], found[Projected()]))
    visual = [int(part) for part in captured.counts("visual")]
    answers = [int(part) for part in captured.counts("answers")]
    assert [len(part) for part in found[Switched(2)]] == [a + b for a, b in zip(visual, answers, strict=True)]


# ---- at a part of the steps


def test_every_fourth_step_has_the_switch_at_four_times_its_weight():
    method = SwitchKD(switch=0.5, switch_every=4)
    at = [method.at((step + 1) / 8, step) for step in range(8)]
    assert [one.switch for one in at] == [2.0, 0, 0, 0, 2.0, 0, 0, 0]
    assert sum(one.switch for one in at) / 8 == method.switch
    assert ["switch" in one.needs for one in at] == [True, False, False, False] * 2
    assert method.at(1.0) == method  # on held-out rows
    assert method.at(1.0).needs == method.needs


def test_the_first_half_has_the_switch():
    method = SwitchKD(switch_until=0.5)
    assert [method.at((step + 1) / 6, step).switch for step in range(6)] == [1, 1, 1, 0, 0, 0]
    assert method.at(1.0).switch == 0  # weights on held-out rows are those of the end


def test_a_share_of_less_than_a_step_is_one_step():
    method = SwitchKD(align=0, switch_until=0.05)
    assert [method.at((step + 1) / 10, step) for step in range(10)] == [method] + [SFT()] * 9


def test_the_knobs_go_together():
    method = SwitchKD(switch=2.0, switch_warmup=0.5, switch_until=0.75, switch_every=2, switch_layers=1)
    at = [method.at((step + 1) / 8, step) for step in range(8)]
    assert [one.switch for one in at] == pytest.approx([1.0, 0, 3.0, 0, 4.0, 0, 0, 0])
    assert [one.needs == method.needs for one in at] == [True, False] * 3 + [False, False]
    assert SwitchKD(align=0, switch_every=2).at(1.0, 1) == SFT()
    added = SwitchKD(align=0, switch_every=2).plus(features=1.0)
    assert added.at(1.0, 1).needs == SFT().plus(features=1.0).needs
    assert added.at(1.0, 0).needs == added.needs


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (SwitchKD(window=32, switch_every=3), [2, 1, 1, 2, 1, 1]),
        (SwitchKD(window=32, switch_until=0.5), [2, 2, 2, 1, 1, 1]),
        (SwitchKD(window=32, switch_every=2, switch_layers=1), [2, 1, 2, 1, 2, 1]),
        (SwitchKD(window=32, align=0, switch_every=3), [2, 0, 0, 2, 0, 0]),
    ],
    ids=str,
)
def test_what_a_step_leaves_out_is_not_computed(tmp_path, method, expected):
    """The teacher's forward passes, step by step: two micro-batches each."""
    trainer = make_trainer(tmp_path, method=method, steps=6, batch_size=2, accumulation=2)
    said = [0] * 6
    plain_say = trainer.pair.teacher.say

    def say(*given):
        said[trainer.state.global_step] += 1
        return plain_say(*given)

    trainer.pair.teacher.say = say
    trainer.train()
    assert said == [2 * passes for passes in expected]
    lines = read_metrics(tmp_path)
    assert ["switch" in line for line in lines] == [passes == 2 for passes in expected]
    assert ["align" in line for line in lines] == [passes > 0 and method.align > 0 for passes in expected]
    assert {"ce", "switch"} <= set(trainer.terms)


def test_a_step_without_the_switch_is_a_step_of_the_method_without_it(tmp_path):
    """And one that has it is a step at n times the weight."""
    batch = tiny_batch(images=IMAGES)
    method = SwitchKD(window=32, switch_every=3)
    scheduled = DistillationStep(make_pair(method), method)
    for number, other in ((0, SwitchKD(window=32, switch=3.0)), (1, SwitchKD(window=32, switch=0))):
        found, expected = scheduled(batch, 0.5, number), DistillationStep(make_pair(other), other)(batch)
        assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-14)
        assert found.terms.keys() == expected.terms.keys()


def test_a_step_without_the_switch_gives_the_bridge_a_gradient_of_zero():
    """Or DDP waits for it."""
    method = SwitchKD(window=32, switch_every=2)
    pair, batch = bridged(method)
    step = DistillationStep(pair, method)
    step(batch, 1.0, 1).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in pair.bridge.parameters())
    step(batch, 1.0, 0).loss.backward()
    assert all(p.grad.any() for p in pair.bridge.parameters())


def test_a_pair_is_asked_for_no_more_than_it_was_made_for():
    pair = make_pair(SwitchKD(switch=0))
    with pytest.raises(
        ValueError, match=r"the pair was not made for Switched\(layers=1\), switch: name it in its `needs`"
    ):
        pair(tiny_batch(), pair.needs | {"switch", Switched(1)})
