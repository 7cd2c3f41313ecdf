"""Activations that are computed twice: the same numbers, in less memory."""

import pytest
import torch
import torch._dynamo
from pairs import ALL, compared, make_pair
from tiny_models import tiny_batch
from torch import nn

from switchkd.losses import cross_entropy, dbild
from switchkd.models.layers import compile_layers, recompute, repeated_layers


def loss_of(pair, batch):
    logits = compared(pair, batch)
    ce = cross_entropy(logits.whole, batch.student.targets)
    return (ce + dbild(logits.student, logits.teacher) + dbild(logits.switch, logits.teacher)).mean()


def step(prepare=lambda pair: None, *, watch=True):
    """The loss, every gradient, the bytes kept for the backward pass, and how often the teacher's layers ran."""
    pair, kept, runs = make_pair().double().train(), {}, 0
    own = {parameter.untyped_storage().data_ptr() for parameter in pair.parameters()}
    prepare(pair)
    for layer in repeated_layers(pair.teacher.part("language")) if watch else []:
        layer.mlp.register_forward_pre_hook(lambda *_: count())

    def count():
        nonlocal runs
        runs += 1

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(pair, tiny_batch())
    loss.backward()
    gradients = {name: p.grad for name, p in pair.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, sum(kept.values()), runs


@pytest.fixture(scope="module")
def usual():
    return step()


def test_recomputed_activations_change_nothing_but_the_memory(usual):
    loss, gradients, kept, ran = step(lambda pair: recompute(pair.teacher.part("language")))
    assert torch.equal(loss, usual[0])
    assert gradients.keys() == usual[1].keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, usual[1][name], rtol=0, atol=1e-14, msg=name)
    assert usual[3] == 6  # three layers: the teacher's own pass and the switch
    assert ran == 9  # and once more in the backward pass
    assert kept < 0.75 * usual[2]


def test_without_gradients_nothing_is_recomputed():
    pair, batch = make_pair().eval(), tiny_batch()
    with torch.no_grad():
        expected = compared(pair, batch)
        recompute(pair.teacher.part("language"))
        recomputed = compared(pair, batch)
    for route in ALL:
        assert torch.equal(recomputed.of(route), expected.of(route))


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no layers of transformers' GradientCheckpointingLayer"):
        repeated_layers([nn.Linear(2, 2)])


def compiled(backend, *, recomputed=False):
    def prepare(pair):
        if recomputed:
            recompute(pair.teacher.part("language"))
        for pathway in (pair.student, pair.teacher):
            compile_layers([*pathway.part("vision"), *pathway.part("language")], backend=backend)

    return prepare


@pytest.fixture
def strict_dynamo():
    """No silent way back to Python: not when a graph is compiled too often."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # what torch warns itself of while it traces
@pytest.mark.usefixtures("strict_dynamo")
@pytest.mark.parametrize("recomputed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_compiled_layers_change_nothing(usual, recomputed):
    torch._dynamo.utils.counters.clear()
    loss, gradients, _, _ = step(compiled("aot_eager", recomputed=recomputed), watch=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3
    torch.testing.assert_close(loss, usual[0], rtol=0, atol=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, usual[1][name], rtol=0, atol=1e-12, msg=name)
