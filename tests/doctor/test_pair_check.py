"""What the doctor says of two checkpoints, and whether such a pair can be trained."""

import pytest

from switchkd.doctor import examine_pair
from switchkd.pairing.compatibility import Difference
from switchkd.pairing.pair_report import PairReport

DIFFERENCES = {
    "ok": Difference("feature width", 32, 32, "fits"),
    "warning": Difference("images", "whole", "cut into tiles", "refused for the switch", "no place"),
    "failed": Difference("tokenizer", "3 tokens", "4 tokens", "refused", "unreadable"),
}


@pytest.mark.parametrize("level", DIFFERENCES)
def test_only_what_cannot_be_trained_at_all_fails(level, monkeypatch):
    monkeypatch.setattr(
        "switchkd.doctor.pair_findings.compare_checkpoints",
        lambda student, teacher: PairReport([DIFFERENCES[level]], 3),
    )
    findings, proposal = examine_pair("s", "t")
    assert [line.level for line in findings.lines] == [level]
    assert findings.ok == (level != "failed")
    assert ("switch: 0" in proposal) == (level == "warning")
    if level == "warning":
        assert findings.lines[0].detail == "whole and cut into tiles: refused for the switch, no place"
