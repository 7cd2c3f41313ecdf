"""On a GPU no micro-batch makes the host wait, and a loss that is not finite is told late and is the same stop."""

import json
import re

import numpy as np
import pytest
import torch
from steps import collate, make_trainer, rows
from waits import Waits

from switchkd.batch import TEACHER, Aligned
from switchkd.losses import fused_loss
from switchkd.methods import METHODS, SFT
from switchkd.train import finite_watch
from switchkd.train.finite_watch import FiniteWatch

#: Where transformers looks at values: once in each forward pass of a model.
_IN_TRANSFORMERS = {
    "get_placeholder_mask": 1,  # the message of a check that did not fail
    "torch_compilable_check": 1,  # as many placeholders as features?
    "find_packed_sequence_indices": 1,  # are several samples in a row?
}
#: The batch is on the host there, or the verdict has been copied to it; `tokens_read` is asked when operations are counted, once.
_ON_THE_HOST = (
    "trainer.py:_get_num_items_in_batch",
    "trainer.py:<listcomp>",
    "batch.py:tokens_read",
    "finite_watch.py:first_bad",
)
_LOGGING = ("trainer.py:log", "trainer.py:_maybe_log_save_evaluate", "term_sums.py:means", "term_sums.py:<dictcomp>")
#: The loader's beginning, and what runs while operations are counted.
_ONCE = ("data_loader.py:__iter__", "operations.py:__torch_dispatch__")


class Late:
    """What a GPU says of its work: not yet, some times."""

    waited = 0

    def __init__(self, times: float) -> None:
        self.times = times

    def query(self) -> bool:
        self.times -= 1
        return self.times < 0

    def synchronize(self) -> None:
        Late.waited += 1
        self.times = 0


@pytest.fixture
def gpu(monkeypatch):
    """Tensors that say they are on a GPU, and verdicts that come late: call it with how often they are not there yet."""

    def pretend(times: float = 2) -> None:
        Late.waited = 0
        monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
        monkeypatch.setattr(finite_watch, "_behind", lambda tensor: Late(times))

    return pretend


def trainer_on_gpu(output, **settings):
    trainer = make_trainer(output, **{"optim": "adamw_torch_fused", "logging_steps": 50} | settings)
    trainer.pair.float()
    return trainer


def weights(trainer) -> dict:
    return {name: p.detach().clone() for name, p in trainer.pair.student.named_parameters()}


def test_no_micro_batch_waits_outside_logging(tmp_path, gpu, monkeypatch):
    gpu()
    trainer = trainer_on_gpu(tmp_path, steps=4, batch_size=2, accumulation=2, logging_steps=4, max_grad_norm=1.0)
    waits, epoch = Waits(), trainer._run_epoch

    def counted(*args, **kwargs):
        with waits:
            return epoch(*args, **kwargs)

    monkeypatch.setattr(trainer, "_run_epoch", counted)
    forwards, waited = [], []
    for pathway in (trainer.pair.student, trainer.pair.teacher):
        pathway.model.model.register_forward_hook(lambda *_: forwards.append(1))
    log = trainer.log
    monkeypatch.setattr(trainer, "log", lambda *args: waited.append(Late.waited) or log(*args))
    monkeypatch.setattr(
        trainer, "_look", lambda *, wait, look=trainer._look: (wait or waited.append(Late.waited), look(wait=wait))
    )
    trainer.train()
    assert len(forwards) == 3 * 4 * 2
    places = [re.sub(r".*?([^/]+):\d+ (\S+)$", r"\1:\2", found) for found in waits.found]
    left = [place for place in places if place not in _ON_THE_HOST + _LOGGING + _ONCE]
    assert {place.partition(":")[2] for place in left} <= _IN_TRANSFORMERS.keys(), waits.found
    assert len(left) <= sum(_IN_TRANSFORMERS.values()) * len(forwards)
    assert places.count("batch.py:tokens_read") == 1
    assert waited[: 4 * 3] == [0] * 12  # until the line of the log: two losses and a gradient of four steps
    assert waited[12] > 0


@pytest.mark.parametrize("name", ["sft", "kd", "bild", "switch_kd"])
def test_no_method_makes_the_loss_wait(tmp_path, gpu, name):
    """Their values are looked at where a user calls them, and not chunk by chunk in a step."""
    trainer = trainer_on_gpu(tmp_path, method=METHODS[name](), batch_size=2)
    batch = collate(rows(2))
    gpu()
    signals = trainer.pair(batch)
    with Waits() as waits:
        trainer.step._sum(trainer.pair, trainer.step.method, signals)
    assert waits.found == []


def test_no_answer_that_is_left_out_makes_the_loss_wait(tmp_path, gpu):
    """With a teacher of another tokenizer some answers are not compared, and chunks are cut by their places."""
    trainer = trainer_on_gpu(tmp_path, batch_size=2)
    batch = collate(rows(2))
    (aligned,) = batch.shared.values()
    places = np.arange(len(aligned.targets))[1::2]
    chosen = torch.from_numpy(places)
    apart = Aligned(chosen, chosen, aligned.targets[chosen], places)
    gpu()
    for known in (True, False):
        shared = {TEACHER: apart if known else apart._replace(places=None)}
        signals = trainer.pair(batch._replace(shared=shared).to("cpu"))
        with Waits() as waits:
            fused_loss(trainer.step.method.chunk_loss(), signals, chunk=3)
        assert bool(waits.found) is not known


def test_batches_come_from_the_loader_as_they_were_collated(tmp_path):
    assert make_trainer(tmp_path).get_train_dataloader().device is None


@pytest.mark.parametrize("times", [0, 1, 2, 7, float("inf")])
def test_a_loss_that_is_known_late_to_be_not_finite_is_the_same_stop(tmp_path, gpu, times):
    data = rows(12)
    data[5]["pixels"] = data[5]["pixels"] * float("nan")
    settings = {"data": data, "batch_size": 2, "accumulation": 2, "steps": 3, "seed": 0}
    at_once = make_trainer(tmp_path / "at-once", optim="adamw_torch_fused", **settings)
    at_once.pair.float()
    with pytest.raises(FloatingPointError) as expected:
        at_once.train()
    gpu(times)
    late = trainer_on_gpu(tmp_path / "late", **settings)
    with pytest.raises(FloatingPointError) as told:
        late.train()
    short = [re.sub(r"its samples.*", "", str(error.value)) for error in (expected, told)]
    assert short[0] == short[1]
    assert "'row-5'" in short[1]
    (one,), (other,) = ((tmp_path / name).glob("not-finite-step-*.json") for name in ("at-once", "late"))
    assert one.name == other.name
    first, second = (json.loads(file.read_text()) for file in (one, other))
    assert first["batches"] == second["batches"]
    assert first["pathways"] == second["pathways"]
    assert first["parts"]["language"]["weights"] == second["parts"]["language"]["weights"]
    before, after = weights(at_once), weights(late)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_gradient_that_is_known_late_to_be_not_finite_is_named_by_its_tensor(tmp_path, gpu):
    gpu(float("inf"))
    trainer = trainer_on_gpu(tmp_path, method=SFT(), steps=2)
    weight = trainer.pair.student.model.model.multi_modal_projector.linear_1.weight
    weight.register_hook(lambda gradient: gradient * float("inf"))
    start = weights(trainer)
    with pytest.raises(FloatingPointError, match=r"step 1: the gradient is not finite; stopped before the update"):
        trainer.train()
    found = json.loads((tmp_path / "not-finite-step-1.json").read_text())
    assert found["parts"]["projector"]["gradients"]["not_finite"] == ["model.multi_modal_projector.linear_1.weight"]
    assert all(torch.equal(start[name], value) for name, value in weights(trainer).items())


def test_no_checkpoint_is_written_before_the_verdict_is_known(tmp_path, gpu):
    gpu(float("inf"))
    data = rows(8)
    for row in data:
        row["pixels"] = torch.full((1, 3, 16, 16), float("nan")) if row["pixels"] is not None else None
    trainer = trainer_on_gpu(tmp_path, data=data, method=SFT(), steps=2, save_strategy="steps", save_steps=1)
    with pytest.raises(FloatingPointError, match="step 1: the loss is not finite"):
        trainer.train()
    assert not list(tmp_path.glob("*checkpoint*"))
    assert not (tmp_path / ".saving").exists()


def test_what_is_finite_when_it_is_taken_again_is_said_to_be(tmp_path, gpu, monkeypatch):
    gpu()
    trainer = trainer_on_gpu(tmp_path, method=SFT(), steps=2)
    note = FiniteWatch.note
    monkeypatch.setattr(FiniteWatch, "note", lambda self, value, step: note(self, value * float("nan"), step))
    with pytest.raises(FloatingPointError, match=r"step 1: .* It is finite when this process takes the step again"):
        trainer.train()


def test_optimizers_that_leave_no_update_out_are_looked_at_before_it(tmp_path, gpu):
    gpu(float("inf"))
    trainer = trainer_on_gpu(tmp_path, method=SFT(), optim="sgd")
    weight = trainer.pair.student.head.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    start = weights(trainer)
    with pytest.raises(FloatingPointError, match="step 1: the gradient is not finite"):
        trainer.train()
    assert all(torch.equal(start[name], value) for name, value in weights(trainer).items())
    assert Late.waited == 0
