import json

import pytest

from switchkd.report.curves import curves_of
from switchkd.results.training_log import read_training_log

LINES = [
    {"step": 10, "loss": 2.0, "ce": 1.5, "align": 0.5, "knee_teacher": 12.0, "learning_rate": 1e-3, "answer_tokens": 99, "epoch": 0.1},
    {"step": 20, "loss": 1.0, "ce": 0.75, "align": 0.25, "knee_teacher": 11.0, "learning_rate": 1e-3, "answer_tokens": 98, "epoch": 0.2},
    {"step": 20, "train_runtime": 3.0, "train_loss": 1.5},
]  # fmt: skip


def test_the_curves_are_the_logged_terms(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert curves_of(read_training_log(tmp_path / "metrics.jsonl")[0]) == {
        "loss": [(10, 2.0), (20, 1.0)],
        "ce": [(10, 1.5), (20, 0.75)],
        "align": [(10, 0.5), (20, 0.25)],
        "knee_teacher": [(10, 12.0), (20, 11.0)],
    }


def test_shares_counts_and_learning_rates_are_not_drawn_as_nats():
    others = {
        "learning_rate": 1e-3,
        "learning_rate_vision": 1e-4,
        "aligned": 0.7,
        "dropped_mass": 0.1,
        "answer_tokens": 9,
    }
    line = {"step": 1, "loss": 1.0, "mine": 1.0, "grad_norm": 2.0, "epoch": 0.1, **others}
    assert curves_of([line]) == {"loss": [(1, 1.0)], "mine": [(1, 1.0)]}


@pytest.mark.parametrize(
    ("text", "message"), [('{"step": 1, "loss": 1}\n{"step"\n', "line 2"), ("[1]", "line 1"), ('{"loss": 1}', "line 1")]
)
def test_files_that_are_no_log_are_named(tmp_path, text, message):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=rf"m\.jsonl.*{message}"):
        read_training_log(tmp_path / "m.jsonl")
