"""Benchmarks decide nothing here; what they compute with is tested, and that they run."""

import json
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from published_configs import PUBLISHED

from switchkd import world

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


PROGRAMS = sorted(file.name for file in BENCHMARKS.glob("*.py") if "__main__" in file.read_text())


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_benchmark_explains_itself(importable, program, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCHMARKS / program), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {program}")


@pytest.mark.long
def test_options_are_measured_on_the_step_that_is_trained(importable, monkeypatch):
    import options

    model = options.model
    monkeypatch.setattr(options, "model", lambda given, hidden, layers, *rest: model(given, hidden // 2, 1, *rest))
    smallest = Namespace(rows=1, tokens=2, vocabulary=64, device="cpu")
    for name in ("as by default", "frozen encoder, method kd"):
        forward_and_backward = options.CASES[name](smallest)
        forward_and_backward()


def test_memory_is_measured_on_the_step_that_is_trained(importable):
    import memory

    small = memory.config(32, 1, 2)
    batch = memory.make_batch()
    assert len(batch.student.targets) == memory.ROWS * memory.ANSWERS
    assert (batch.student.targets == batch.student.tokens.flatten()[batch.student.predicts + 1]).all()
    for name in ("switch-kd, both checkpointings", "sft, LoRA"):
        memory._step_of(memory.CASES[name], small, small, batch)()


@pytest.mark.parametrize("encode", [False, True])
def test_rows_are_indexed_by_the_benchmarks_own_encoders(importable, tmp_path, encode):
    import rows

    file = rows.write_data(tmp_path, 20)
    for what in ("rows", "index"):
        assert rows.start(file, what, encode)["rows"] == 20


def test_padding_is_what_fills_up_the_shorter_rows_of_a_batch(importable, tmp_path):
    import padding

    assert padding.padding([4, 2, 3, 1], [0, 1, 2, 3], 2) == pytest.approx(1 - 10 / 14)
    assert padding.padding([4, 3, 2, 1], [0, 1, 2, 3], 2) == pytest.approx(1 - 10 / 12)
    world.write(tmp_path, train=4, validation=0, test=0, seed=0)
    lengths = padding.encoded(str(tmp_path / "train.json"), str(world.teacher_path()), 512)
    assert len(lengths) > 0
    assert min(lengths) > 36  # the visual tokens of an image, and text


@pytest.fixture
def step(importable, monkeypatch, tmp_path):
    import step

    monkeypatch.setattr(step, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    return step


# TFLOP of a sample at the paper's shapes, counted by hand beside the configs: 729 visual tokens, a prompt of 60, these answers.
BY_HAND = {
    120: {"teacher vision": 0.68, "teacher language": 5.17, "student vision": 2.00, "student language": 2.08,
          "switch forward": 5.18, "switch backward": 5.36, "heads": 0.25},
    400: {"teacher vision": 0.68, "teacher language": 6.81, "student vision": 2.00, "student language": 2.77,
          "switch forward": 6.82, "switch backward": 7.13, "heads": 0.83},
}  # fmt: skip


@pytest.mark.parametrize("answer", BY_HAND)
def test_the_operations_of_the_papers_step(step, answer):
    from flops import Sizes, step_flops

    found = step_flops(*step.paper(), Sizes(visual=729, prompt=60, answer=answer))
    assert found.keys() == BY_HAND[answer].keys()
    for part, tflop in BY_HAND[answer].items():
        assert found[part] / 1e12 == pytest.approx(tflop, rel=0.05), part
    assert sum(found.values()) / 1e12 == pytest.approx(sum(BY_HAND[answer].values()), rel=0.02)


def test_a_tiny_step_runs_and_its_parts_make_the_whole(step, monkeypatch, capsys):
    arguments = ["step.py", "--batch", "2", "--answer", "9", "--prompt", "4", "--repetitions", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    step.main()
    row = json.loads((step.RESULTS / "step-cpu.jsonl").read_text())
    assert row["sizes"] | {"batch": 2, "answer": 9, "visual": 16, "shapes": "tiny"} == row["sizes"]
    assert set(row["parts_ms"]) == set(step.PARTS)
    assert min(row["parts_ms"].values()) > 0
    assert "tokens/s" in capsys.readouterr().out


def test_demands_on_a_gpu(step):
    row = {"sizes": {"batch": 16, "answer": 120}, "floor_ms": 418.0, "step_ms": 836.1, "parts_ms": {"loss": 12.4},
           "loss_gib_above_inputs": 2.1}  # fmt: skip
    assert [demand.met for demand in step.demands(row)] == [False, True, False]


def test_a_check_on_a_cpu_is_refused(step, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["step.py", "--check"])
    with pytest.raises(SystemExit):
        step.main()
    assert "add --device cuda" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_for_a_gpu_runs_in_small(step, monkeypatch, capsys):
    import gpu

    monkeypatch.setattr(gpu, "RESULTS", step.RESULTS)
    small = ["--device", "cpu", "--tokens", "8", "--vocabulary", "500", "--batch", "2", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *small])
    gpu.main()
    rows = [json.loads(line) for line in (step.RESULTS / "gpu-cpu.jsonl").read_text().splitlines()]
    assert [row["case"] for row in rows[:-3]] == list(gpu.TIMED)
    assert all(row["median_ms"] > 0 for row in rows[:-3] if "not_run" not in row)
    assert [row["sizes"]["padded"] for row in rows[-3:-1]] == [0, 110]
    assert rows[-1]["case"] == "switchkd train"
    assert rows[-1]["step_ms"] > 0
    assert rows[-1]["finish_s"] > 0
    assert rows[-1]["sizes"]["student_bytes"] > 10_000
    assert "kernels of the loss: they need a GPU, and this is on cpu" in capsys.readouterr().out


def test_padded_rows_have_as_many_answers_and_end_where_they_end(step):
    given = Namespace(batch=3, padded=5, device="cpu")
    config, _ = step.tiny()
    batch = step.batch(config, given, step.Sizes(16, 4, 9)).student
    assert batch.tokens.shape == (3, 64)
    assert batch.lengths.tolist() == [29, 27, 24]
    assert batch.targets.equal(batch.tokens.flatten()[batch.predicts + 1])
    assert batch.predicts[8::9].tolist() == [27, 64 + 25, 128 + 22]


def test_the_demands_of_a_gpu_name_what_was_not_run(step):
    import gpu

    rows = {name: {"median_ms": 20.0, "peak_mib": 1000.0} for name in gpu.TIMED} | {
        gpu.BY_ITSELF: {"median_ms": 10.0, "peak_mib": 1000.0}, "two-way: Liger chunked": {"not_run": "liger-kernel"}
    }  # fmt: skip
    padded, run = {"floor_ms": 1.0, "step_ms": 1.7}, {"step_ms": 1.75, "finish_s": 10.5}
    found = {demand.what: demand.met for demand in gpu.demands(rows, 31, padded, run)}
    assert list(found.values()) == [True, True, True, False, False, False, True, True, False]


def test_a_gpu_is_asked_for(step, monkeypatch, capsys):
    import gpu

    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="sees no CUDA device here: run this on a machine with a GPU"):
        gpu.main()
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--check"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "leave out --device cpu" in capsys.readouterr().err


@pytest.fixture
def qwen_vl(step):
    import qwen_vl

    qwen_vl.RESULTS = step.RESULTS
    return qwen_vl


@pytest.mark.long
@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_tiny_step_of_qwen_is_estimated_and_run(qwen_vl, monkeypatch, capsys, lora):
    flags = ["--device", "cpu", "--rows", "1", "--repetitions", "1", *(["--lora"] if lora else [])]
    monkeypatch.setattr(sys, "argv", ["qwen_vl.py", *flags])
    qwen_vl.main()
    row = json.loads((qwen_vl.RESULTS / "qwen_vl-cpu.jsonl").read_text())
    assert row["measured"]["step_ms"] > 0
    assert row["estimated"]["peak"] > row["estimated"]["weights"] > 0
    assert row["sizes"] | {"shapes": "tiny", "rows": 1, "length": 512, "lora": lora} == row["sizes"]
    assert re.search(r"peak GiB of a device, nothing sharded +0\.\d+ +–", capsys.readouterr().out)


def test_the_configs_of_qwen_are_those_that_are_published(qwen_vl):
    for made, who in zip(qwen_vl.full(), ("3B", "7B"), strict=True):
        published, _ = PUBLISHED[f"Qwen/Qwen2.5-VL-{who}-Instruct"]
        assert made.to_dict() == published().to_dict()


def test_qwen_asks_for_a_gpu(qwen_vl, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qwen_vl.py"])
    with pytest.raises(SystemExit, match=r"sees no CUDA device here: .* estimate with --estimate"):
        qwen_vl.main()


def test_make_bench_runs_every_benchmark_and_fails_at_the_end(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/ran\ncase "$1" in *memory.py) exit 1;; esac\n')
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "--assume-old=env", f"BIN={tmp_path}", "bench"], cwd=BENCHMARKS.parent, capture_output=True, text=True, check=False
    )  # fmt: skip
    ran = [Path(line).name for line in (tmp_path / "ran").read_text().splitlines() if line.startswith("benchmarks/")]
    assert sorted(ran) == sorted(set(PROGRAMS) - {"gpu.py", "qwen_vl.py"})
    assert made.returncode != 0
    assert made.stderr.splitlines()[0] == "fell short or failed: memory.py"
