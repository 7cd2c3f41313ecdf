"""A change that should change no number changes none: the trajectory of a tiny run is pinned."""

import json

import pytest
from trajectories import same_versions
from trajectory import FILE, trajectory


@pytest.mark.long
@same_versions
def test_the_first_steps_of_the_command_line_are_the_pinned_ones(tmp_path):
    golden = json.loads(FILE.read_text())
    found = trajectory(tmp_path)
    assert len(found) == len(golden["steps"]) == 10
    for step, (now, then) in enumerate(zip(found, golden["steps"], strict=True), start=1):
        assert now == pytest.approx(then, rel=1e-4), f"step {step}; if this is meant: {golden['remake']}"
