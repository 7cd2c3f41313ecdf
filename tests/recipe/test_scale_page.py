"""What fits where (docs/scale.md): how a way is chosen, and that the page has what the configs give."""

from dataclasses import replace
from pathlib import Path

import pytest
from recipe_table import pairs
from scale_table import HEAD, LARGE, MACHINES, WAYS, Machine, Step, cell, line

from switchkd.recipe.schema import load_recipe
from switchkd.recipe.shipped_files import shipped
from switchkd.train.memory import Memory

PAGE = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
GIB = 2**30
#: 10 GiB of weights, 8 of moments, 4 of gradients, 3 of activations.
BIG = Memory(10 * GIB, 8 * GIB, 4 * GIB, 0, 0, 0, 0, peak=25 * GIB)
ONE = Machine(1, "NVIDIA H100 80GB HBM3", room=24)
TWO = replace(ONE, devices=2)


def steps(**peaks):
    """Way → a step; `B` and `C` have a quantised teacher."""
    return {
        way: Step(replace(BIG, peak=peaks[way or "plain"] * GIB), flops=1e12, whole=GIB, quantized=way in ("B", "C"))
        for way in WAYS
        if (way or "plain") in peaks
    }


def test_the_first_way_that_fits_is_taken_and_no_later_one_is_looked_at():
    assert cell(ONE, steps(plain=20).__getitem__).startswith("as it is: 20.0 GiB, ")
    assert cell(ONE, steps(plain=25, A=24).__getitem__).startswith("A: 24.0 GiB, ")
    assert cell(ONE, steps(plain=25, A=25, B=25, C=26).__getitem__) == "no: 25.0 GiB"


def test_ddp_adds_a_copy_of_the_gradients_and_fsdp_spreads_weights_and_moments():
    assert cell(TWO, steps(plain=20).__getitem__).startswith("DDP: 24.0 GiB, ")
    # 22 + 4 are too much; 22 - 18 / 2 + 1 are not
    assert cell(TWO, steps(plain=22).__getitem__).startswith("FSDP2: 14.0 GiB, ")
    # what is quantised is not spread: 30 - 18 / 2 + 1 would fit in B
    peaks = steps(plain=60, A=60, B=30, C=19)
    assert cell(TWO, peaks.__getitem__).startswith("DDP C: 23.0 GiB, ")


def test_weights_that_no_device_holds_are_not_spread_either():
    """Every process loads them whole before."""
    heavy = Step(replace(BIG, weights=30 * GIB, peak=35 * GIB), flops=1e12, whole=GIB, quantized=False)
    assert set(heavy.peaks(TWO)) == {"DDP"}
    assert set(replace(heavy, memory=BIG).peaks(TWO)) == {"DDP", "FSDP2"}


def test_seconds_are_of_a_step_of_all_rows_on_all_devices():
    one = Step(BIG, flops=10e12, whole=0, quantized=False)
    assert one.seconds(ONE) == pytest.approx(128 * 10 / (0.55 * 790))  # an H100 and an H200 compute alike
    assert one.seconds(TWO) == pytest.approx(one.seconds(ONE) / 2)


def test_the_page_has_every_pair_and_every_way_is_one_that_recipes_take():
    lines = PAGE.splitlines()
    assert "| " + " | ".join(HEAD) + " |" in lines
    assert [name for name in (*pairs(), LARGE) if sum(one.startswith(f"| `{name}` | ") for one in lines) != 1] == []
    assert len(MACHINES) == 4
    for way, flags in WAYS.items():
        recipe = load_recipe(shipped()["smolvlm2-256m-from-2.2b"], flags)
        assert (recipe.teacher.quantization, recipe.student.lora is not None) == (
            "4bit" if way in ("B", "C") else None,
            way == "C",
        )
        assert all(flag in PAGE for flag in flags if flag.startswith("--"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*pairs(), LARGE])
def test_the_page_says_what_the_configs_give(name):
    assert line(name) in PAGE.splitlines()
