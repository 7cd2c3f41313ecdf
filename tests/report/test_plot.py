import json
import re

import pytest

from switchkd.report.plot import loss_plot, read_curves

LINES = [
    {"step": 10, "loss": 2.0, "ce": 1.5, "align": 0.5, "knee_teacher": 12.0, "learning_rate": 1e-3, "answer_tokens": 99, "epoch": 0.1},
    {"step": 20, "loss": 1.0, "ce": 0.75, "align": 0.25, "knee_teacher": 11.0, "learning_rate": 1e-3, "answer_tokens": 98, "epoch": 0.2},
    {"step": 20, "train_runtime": 3.0, "train_loss": 1.5},
]  # fmt: skip


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def traces(text: str) -> list[dict]:
    found = re.search(r'Plotly\.newPlot\(\s*"[^"]+",\s*(\[.*?\]),\s*\{"', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_curves_are_the_logged_terms(metrics):
    assert read_curves(metrics) == {
        "loss": [(10, 2.0), (20, 1.0)],
        "ce": [(10, 1.5), (20, 0.75)],
        "align": [(10, 0.5), (20, 0.25)],
        "knee_teacher": [(10, 12.0), (20, 11.0)],
    }


def test_shares_counts_and_learning_rates_are_not_drawn_as_nats(tmp_path):
    path = tmp_path / "m.jsonl"
    others = {
        "learning_rate": 1e-3,
        "learning_rate_vision": 1e-4,
        "aligned": 0.7,
        "dropped_mass": 0.1,
        "answer_tokens": 9,
    }
    path.write_text(json.dumps({"step": 1, "loss": 1.0, "mine": 1.0, "grad_norm": 2.0, "epoch": 0.1, **others}))
    assert read_curves(path) == {"loss": [(1, 1.0)], "mine": [(1, 1.0)]}


def test_one_self_contained_page_holds_every_curve(metrics, tmp_path):
    page = loss_plot({"sft": metrics, "switch_kd": metrics}, tmp_path / "out" / "loss.html")
    text = page.read_text()
    drawn = traces(text)
    assert len(drawn) == 8
    assert {trace["name"] for trace in drawn} >= {"sft: loss", "switch_kd: align", "switch_kd: knee_teacher"}
    below = [trace["name"] for trace in drawn if trace["yaxis"] == "y2"]
    assert below == ["sft: knee_teacher", "switch_kd: knee_teacher"]
    # nothing is fetched: no script or style from elsewhere, and the page forbids it
    assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=", text) == []
    assert "default-src 'none'" in text
    assert "Plotly.newPlot" in text


def test_a_method_without_a_knee_needs_no_second_panel(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 1.0, "ce": 1.0}\n')
    text = loss_plot({"sft": path}, tmp_path / "loss.html").read_text()
    assert [trace["yaxis"] for trace in traces(text)] == ["y", "y"]
    assert "knee k" not in text


@pytest.mark.parametrize(
    "name",
    ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>', "<b>x</b>&amp;"],
)
def test_a_name_is_never_code(metrics, tmp_path, name):
    text = loss_plot({name: metrics}, tmp_path / "loss.html").read_text()
    # every script is ours: plotly's library, its settings, and the figure
    plain = loss_plot({"plain": metrics}, tmp_path / "plain.html").read_text()
    assert text.count("<script") == plain.count("<script")
    assert text.count("</script>") == plain.count("</script>")
    assert name not in text
    assert text.count("<svg") == plain.count("<svg")
    assert text.count("<img") == plain.count("<img")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no loss was logged"),
        ('{"step": 1, "train_loss": 1}', "no loss was logged"),
        ('{"step": 1, "loss": 1}\n{"step"', "line 2"),
        ("[1]", "line 1"),
        ('{"loss": 1}', "line 1"),
    ],
)
def test_files_without_curves_are_named(tmp_path, text, message):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(ValueError, match=rf"m\.jsonl.*{message}"):
        loss_plot({"x": tmp_path / "m.jsonl"}, tmp_path / "loss.html")
    with pytest.raises(ValueError, match="cannot be read"):
        loss_plot({"x": tmp_path / "none.jsonl"}, tmp_path / "loss.html")
    with pytest.raises(ValueError, match="no metrics to plot"):
        loss_plot({}, tmp_path / "loss.html")
    assert not (tmp_path / "loss.html").exists()
