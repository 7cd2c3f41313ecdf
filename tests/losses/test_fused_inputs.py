from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from fused_cases import analytic, by_autograd, fused, gradients, inputs, signals
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from switchkd.batch import TEACHER
from switchkd.losses import DBiLDSettings, fused_loss, plain_loss
from switchkd.losses.fused import CHUNK_MIB, chunk_that_fits
from switchkd.methods import SFT, SwitchKD

METHOD = SwitchKD()
LOSS = analytic(METHOD)


@pytest.fixture
def alone():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": torch.zeros(11, 6)}, r"the student's head \[53, 5\] does not fit hidden states \[11, 6\]"),
        ({"student": torch.zeros(2, 11, 5)}, r"does not fit hidden states \[2, 11, 5\]"),
        ({"teacher": torch.zeros(11, 5)}, r"for the teacher, \[50, 7\] does not fit hidden states \[11, 5\]"),
        ({"switch": torch.zeros(11, 5)}, r"for the switch, \[50, 7\] does not fit hidden states \[11, 5\]"),
        ({"teacher": torch.zeros(12, 7)}, "11 of the student's 11, but teacher has 12"),
        ({"switch": torch.zeros(10, 7)}, "11 of the student's 11, but switch has 10"),
        ({"bias": torch.zeros(50)}, r"has 53 rows but a bias of shape \[50\]"),
        ({"targets": torch.zeros(10).long()}, r"shape \[11\] of the logits' positions, got \[10\]"),
        ({"targets": torch.full((11,), 53)}, "ids from 0 to 52: 53 at position 0"),
        ({"targets": torch.full((11,), -100)}, "-100 at position 0"),
        ({"teacher": torch.zeros(11, 7, requires_grad=True)}, "the teacher is a constant"),
        ({"teacher_weight": torch.zeros(50, 7, requires_grad=True)}, "the teacher is a constant"),
        ({"teacher_bias": torch.zeros(50, requires_grad=True)}, "the teacher is a constant"),
        ({"softcap": 0.0}, "the student's head has a soft cap of 0.0, which must be positive"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fused(METHOD, replace(inputs(), **change), LOSS)


@pytest.mark.usefixtures("unchecked_shapes")
def test_other_targets_than_answers_are_refused():
    batch = signals(METHOD, inputs())
    compared = replace(batch.compared[TEACHER], targets=batch.targets[:9])
    with pytest.raises(ValueError, match="9 targets are given for 11 answers that are compared with teacher"):
        fused_loss(LOSS, replace(batch, compared={TEACHER: compared}))


@pytest.fixture
def memory_begins_as_nan():
    """Torch fills what `torch.empty` gives, while algorithms are to be deterministic."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("memory_begins_as_nan")
def test_a_switch_that_no_term_compares_gets_a_gradient_of_zero():
    x = inputs()
    summed = fused_loss(analytic(SwitchKD(window=8, switch=0)), signals(SwitchKD(window=8), x), chunk=4)
    (of_switch,) = torch.autograd.grad(summed.loss, [x.switch])
    assert torch.equal(of_switch, torch.zeros_like(x.switch))


def test_a_loss_whose_pathway_is_missing_says_so():
    alone, without_switch = signals(SFT(), inputs()), signals(SwitchKD(switch=0), inputs())
    with pytest.raises(LookupError, match="there is no teacher to compare with"):
        fused_loss(LOSS, alone)
    for summed in (
        lambda: fused_loss(LOSS, without_switch),
        lambda: fused_loss(by_autograd(METHOD), without_switch),
        lambda: plain_loss(by_autograd(METHOD), without_switch),
    ):
        with pytest.raises(LookupError, match="the switch was not run: the method does not name it in `needs`"):
            summed()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="chunk must be at least 1 token, got 0"):
        fused(METHOD, inputs(), LOSS, chunk=0)
    with pytest.raises(ValueError, match="vocabulary is 51, but the heads share 50 rows only"):
        fused(METHOD, inputs(), LOSS, vocabulary=51)
    with pytest.raises(ValueError, match="vocabulary must be at least 2"):
        fused(METHOD, inputs(), LOSS, vocabulary=1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_that_mean_nothing_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite, got"):
        DBiLDSettings(temperature=temperature)


@pytest.mark.usefixtures("alone")
def test_a_sharded_head_is_refused():
    x = inputs(bias=False)
    sharded = distribute_tensor(x.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
    with pytest.raises(TypeError, match=r"the student's head is sharded \(DTensor\)"):
        fused(METHOD, replace(x, weight=sharded), LOSS)


@pytest.mark.usefixtures("alone")
def test_distributed_data_parallel_sees_every_gradient():
    # The head is used outside of the wrapped module's forward, as the trainer may do.
    class Student(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.body = nn.Linear(5, 5, dtype=torch.float64)
            self.head = nn.Linear(5, len(weight), dtype=torch.float64)

        def forward(self, x):
            return self.body(x)

    x = inputs()
    student = Student(x.weight)
    wrapped = nn.parallel.DistributedDataParallel(student)
    found = []
    for module in (wrapped, student):
        student.zero_grad()
        said = replace(x, student=module(x.student.detach()), weight=student.head.weight, bias=student.head.bias)
        fused(METHOD, said, LOSS).loss.backward()
        found.append([parameter.grad.clone() for parameter in student.parameters()])
    for ours, alone in zip(*found, strict=True):
        torch.testing.assert_close(ours, alone)


def test_chunks_fill_their_memory_and_are_about_equal():
    device, logit_bytes = torch.device("cpu"), 3 * 151_936 * 4
    most = CHUNK_MIB["cpu"] * 2**20 // logit_bytes
    for tokens in (1, 100, most, 1_920, 30_000):
        chunk = chunk_that_fits(tokens, logit_bytes, device)
        assert 1 <= chunk <= min(most, tokens)
        chunks = -(-tokens // chunk)
        assert chunks * chunk - tokens < chunks  # at most one token short, each
        assert chunks <= tokens / most * 1.1 + 1
    assert chunk_that_fits(10, 2**40, device) == 1
    assert fused(METHOD, inputs(), LOSS).chunk == 11


def test_shares_no_memory_with_its_inputs():
    x = inputs()
    kept = [y.detach().clone() for y in (*x.learned, x.teacher, x.teacher_weight, x.teacher_bias)]
    gradients(fused(METHOD, x, LOSS, chunk=4).loss, x)
    for before, after in zip(kept, (*x.learned, x.teacher, x.teacher_weight, x.teacher_bias), strict=True):
        assert torch.equal(before, after)
