"""What is said of the speed of a stage: tokens, operations, and what part of a card's peak they are."""

import logging
import re
import time

import pytest
import torch
from steps import make_trainer, rows
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import TrainerControl, TrainerState, TrainingArguments

from switchkd.methods import SFT, SwitchKD
from switchkd.train import peak
from switchkd.train.compile_time import CompileTime
from switchkd.train.operations import CountOperations
from switchkd.train.peak import Peak, find_peak, published_tflops, tflops_of_products
from switchkd.train.speed import Speed


@pytest.fixture
def clock(monkeypatch):
    """Begun at 100 s, asked at 110 s and at 130 s."""
    times = iter([0.0, 100.0, 110.0, 130.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    monkeypatch.setattr("switchkd.train.speed.peak_memory", lambda: 3 * 2**29)


def multiply(rows: int, width: int) -> None:
    """2 · rows · width² operations."""
    torch.ones(rows, width) @ torch.ones(width, width)


def test_speed_counts_tokens_without_padding_and_the_time_left(clock):
    speed = Speed()
    speed.count(10**9, 10**9)  # before training begins, as when a resumed run passes over what is learned already
    speed.begin(4)
    speed.count(30_000, 20)
    speed.count(12_000, 4)
    assert speed.since_last(6, 20) == "4,200 tokens/s  2.4 samples/s  1.5 GiB at most  0:01:10 left"
    speed.count(10, 1)
    assert speed.since_last(7, 20) == "0 tokens/s  0.1 samples/s  1.5 GiB at most  0:02:10 left"


def test_a_cpu_has_tflops_and_no_share_of_a_peak_that_nobody_knows(clock):
    speed = Speed(peak=find_peak(torch.device("cpu")))
    with speed.operations(5):
        multiply(10, 100)  # 40,000 operations for each of 5 tokens
    speed.begin(0)
    speed.count(5_000_000, 1)
    assert speed.since_last(1, 1) == ("500,000 tokens/s  0.1 samples/s  0.02 TFLOP/s  1.5 GiB at most  0:00:00 left")


def test_both_denominators_of_a_card_and_each_process_by_itself(clock):
    speed = Speed(processes=2, peak=Peak(published=989.0, measured=790.0))
    with speed.operations(1):
        multiply(100, 1000)  # 0.2 GFLOP for a token
    speed.begin(0)
    speed.count(40_000_000, 10)  # of both
    said = speed.since_last(1, 1).split("  ")
    assert said[2:5] == [
        "400 TFLOP/s per process",
        "MFU 40.4% of 989 TFLOP/s published",
        "MFU 50.6% of 790 TFLOP/s measured",
    ]


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA B200", 2250),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of the card
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
        ("NVIDIA A1000 Laptop GPU", None),
        ("NVIDIA H20", None),
    ],
)
def test_cards_are_known_by_their_names(name, tflops):
    assert published_tflops(name) == tflops


@pytest.mark.parametrize(
    ("name", "measured", "found", "said"),
    [
        ("NVIDIA H200", 790.4, Peak(989.0, 790.4), ["790 TFLOP/s in a bare bf16 product"]),
        ("Card of tomorrow", 50.0, Peak(None, 50.0), ["is not known here", "50 TFLOP/s in a bare"]),
        ("Tesla T4", None, Peak(None, None), ["is not known here", "no bf16 products"]),
    ],
)
def test_a_device_is_asked_for_its_name_and_measured(monkeypatch, caplog, name, measured, found, said):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(peak, "measure_tflops", lambda device: measured)
    with caplog.at_level(logging.INFO):
        assert find_peak(torch.device("cuda")) == found
    assert len(caplog.messages) == len(said)
    for message, words in zip(caplog.messages, said, strict=True):
        assert name in message
        assert words in message


def test_products_of_a_time_are_tflops():
    assert tflops_of_products(8192, 8, 11.134) == pytest.approx(790, rel=1e-3)


@pytest.mark.parametrize("again", [False, True])
def test_what_is_computed_a_second_time_is_not_counted_twice(again):
    layer = nn.Linear(8, 16, bias=False)
    given = torch.ones(4, 8, requires_grad=True)
    with CountOperations() as counted:
        result = checkpoint(layer, given, use_reentrant=False) if again else layer(given)
        result.sum().backward()
    assert counted.total == 3 * 2 * 4 * 8 * 16


def test_the_first_micro_batch_alone_is_counted_whatever_is_computed_again(tmp_path, monkeypatch):
    begun = []
    enter = CountOperations.__enter__
    monkeypatch.setattr(CountOperations, "__enter__", lambda self: begun.append(self) or enter(self))
    lines = []
    for checkpointing in (False, True):
        trainer = make_trainer(tmp_path, data=rows(4) * 2, batch_size=4, accumulation=2, method=SFT())
        if checkpointing:
            trainer.pair.student.model.activation_checkpointing_enable({"use_reentrant": False})
        trainer.train()
        lines.append(trainer.speed.since_last(3, 3).split("  ")[2])
    assert [line.endswith(" TFLOP/s") for line in lines] == [True, True]
    first, again = (counted.total for counted in begun)
    assert first == again > 0


def test_steps_that_leave_a_pathway_out_are_counted_apart(tmp_path, monkeypatch):
    counted = []
    leave = CountOperations.__exit__
    monkeypatch.setattr(CountOperations, "__exit__", lambda self, *e: counted.append(self.total) or leave(self, *e))
    trainer = make_trainer(tmp_path, steps=6, method=SwitchKD(window=32, switch_every=3))
    trainer.train()
    assert len(counted) == 2
    assert counted[0] > 1.3 * counted[1] > 0


def test_operations_are_those_of_each_kind_of_step(clock):
    speed = Speed()
    for kind, rows_of in (("dear", 30), ("cheap", 10)):
        with speed.operations(1, kind):
            multiply(rows_of, 1000)
    speed.begin(0)
    speed.count(1000, 1, "dear")
    speed.count(3000, 1, "cheap")
    assert "0.012 TFLOP/s" in speed.since_last(
        2, 4
    )  # 1,000 · 60 million and 3,000 · 20 million operations in ten seconds
    speed.count(10, 1, "never counted")
    assert "TFLOP/s" not in speed.since_last(3, 4)


def test_compiling_is_said_of_the_step_that_it_takes_and_of_no_other(capsys):
    class Layer(nn.Module):  # torch leaves its own as they are
        def forward(self, x):
            return 2 * x

    callback, layer = CompileTime(), Layer()
    layer.compile(backend="eager")
    for step, rows_ in ((1, 2), (2, 2)):
        layer(torch.ones(rows_, 3))
        state = TrainerState(global_step=step, is_world_process_zero=True)
        callback.on_step_end(TrainingArguments(report_to=[], use_cpu=True), state, TrainerControl())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.fullmatch(r"step 1: torch.compile took [\d.]+ s of it, [\d.]+ s so far", said[0])
