"""What a page says, read as text; test_report_in_browser.py opens it."""

import base64
import hashlib
import html
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from run_folders import write_benchmarks, write_fake_run, write_results, write_study

from switchkd.report import alt_texts, figures, pictures
from switchkd.report.evidence import Agreement, Model, Probe
from switchkd.report.gather import gather
from switchkd.report.page import render
from switchkd.report.sections import difference_intervals, signed
from switchkd.results.intervals import Interval
from switchkd.results.question_results import OVERALL


def text_of(page: str) -> str:
    """The page without scripts, styles and tags, on one line."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def drawn(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)[1])


def png(size: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def evidence(tmp_path):
    write_fake_run(tmp_path / "sft", "100000")
    write_fake_run(tmp_path / "switch-kd", "011111", method="switch_kd")
    write_results(tmp_path / "teacher.results.json", "111111", model="teacher")
    return gather([tmp_path])


@pytest.fixture
def probed(evidence):
    """The same with what is computed for a report: two questions' attention, knees and agreement."""
    maps = {"student": [[0.1, 0.0], [0.0, 0.2]], "teacher": [[0.2, 0.0], [0.0, 0.2]]}
    probe = Probe(
        questions=2,
        tokens=4,
        window=64,
        min_k=3,
        knees={"teacher": (3, 3, 5, 9), "student": (3, 4, 4, 4)},
        agreement={"student": Agreement(75.0, 0.5, 0.25)},
        attention={"shape-0": maps, "count-1": maps},
        notes=("there is no switch: it does not fit",),
    )
    models = [model if model.recipe is None else replace(model, probe=probe) for model in evidence.models]
    return replace(
        evidence,
        models=tuple(models),
        chosen=("shape-0", "count-1"),
        pictures={"shape-0": png(), "count-1": png(), "colour-0": png()},
        same_answers={"sft": {None: 16.7, "colour": 50.0}, "switch-kd": {None: 83.3, "colour": 50.0}},
    )


def test_the_page_names_the_metric(evidence):
    assert "Exact match in percent, greedy answers" in text_of(render(evidence))
    models = [
        replace(model, results=replace(model.results, metrics={"anls": 4, "vqa": 2})) for model in evidence.models
    ]
    text = text_of(render(replace(evidence, models=tuple(models))))
    assert "Score in percent, by the metric anls (4), vqa (2), greedy answers" in text
    assert "Exact match" not in text


def test_values_that_are_not_finite_are_left_out_of_curves_and_said(tmp_path):
    run = write_fake_run(tmp_path / "run", None)
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": float("inf"), "ce": 2.0}]
    log = run / "1-train" / "metrics.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evidence = gather([run])
    assert evidence.models[0].curves == {"loss": [(1, 1.0)], "ce": [(3, 2.0)]}
    assert f"{log}: loss is no finite number in 2 of 3 lines, first at step 2" in text_of(render(evidence))


def test_scores_stand_over_their_differences(evidence):
    text = text_of(render(evidence))
    assert "sft baseline 16.7 50.0 0.0 0.0" in text
    assert (
        "switch-kd 83.3 +66.7 [0.0, +100.0] 50.0 0.0 [−100.0, +100.0] 100.0 +100.0 [+100.0, +100.0] 100.0 +100.0"
        in text
    )
    assert "colour n = 2" in text
    assert "switch-kd : 5 won, 1 lost of 6 against sft" in text
    assert "teacher : 5 won, 0 lost of 6 against sft" in text
    assert "method.name sft switch_kd" in text
    assert "sft 3 6.0 s 3.5 s 2000 ms cpu, float32" in text


def test_what_was_computed_is_shown_with_what_it_is(probed):
    text = text_of(render(probed))
    assert "At the 4 answer tokens of 2 test questions" in text
    assert "window 64, least k 3" in text
    assert "sft teacher 5.0 5 3 – 9 50.0" in text
    assert "sft student 75.0 0.500 0.250" in text
    assert "same first choice, % forward KL(p T ‖ p) reverse KL(p ‖ p T )" in text
    assert "sft · switch-kd : there is no switch: it does not fit" in text
    assert "what shape-0? → yes" in text
    # one teacher for both runs, then each student, with its share of attention
    assert text.count("teacher 40 % student sft , 30 % student switch-kd , 30 %") == 2


def test_knees_are_shares_of_the_tokens(probed):
    page = render(probed)
    curves = [
        trace
        for figure in drawn(page).values()
        for trace in figure["data"]
        if trace.get("line", {}).get("shape") == "hv"
    ]
    teacher = next(trace for trace in curves if trace["name"] == "teacher")
    assert dict(zip(teacher["x"], teacher["y"], strict=True)) == {3: 50, 4: 0, 5: 25, 6: 0, 7: 0, 8: 0, 9: 25, 10: 0}
    wide = figures.knee_distribution({"switch": [3, 4, 100]})["data"][0]
    assert sum(wide["y"]) == pytest.approx(100, abs=0.1)
    assert len(wide["x"]) < 45


@pytest.mark.parametrize(
    ("given", "sentences"),
    [
        ("run", ["No public benchmark was run", "It takes two models", "The teacher's own answers are not among the models",
                 "There is no distribution", "There is no attention to show", "Memory is not recorded", "switchkd evaluate"]),
        ("results", ["No training was logged: give the folder of a run", "There is no k over time", "There is no recipe"]),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(tmp_path, given, sentences):
    path = write_fake_run(tmp_path / "run", None)
    if given == "results":
        path = tmp_path / "alone.json"
        write_results(path, "100000")
    text = text_of(render(gather([path]))).lower()
    for sentence in sentences:
        assert sentence.lower().removeprefix("there is ") in text, sentence


def test_every_picture_and_chart_says_in_numbers_what_it_shows(probed):
    page = render(probed)
    charts = re.findall(r'<div class="chart" [^>]*>', page)
    assert len(charts) == len(drawn(page)) > 8
    said = [html.unescape(re.search(r'role="img" aria-label="([^"]*)"', chart)[1]) for chart in charts]
    assert (
        "Chart, percent of each kind of question. teacher: colour 100.0, count 100.0, shape 100.0; sft: colour 50.0, count 0.0, "
        in said[0]
    )
    assert said[1].startswith(
        "Chart, difference to sft in points. teacher: shape +100.0 (from +100.0 to +100.0), count "
    )
    assert said[1].endswith(", colour +0.0 (from -100.0 to +100.0).")
    assert said[2].startswith(
        "Chart, total loss against the step. sft: 4 at 1, 1.333 at 3, least 1.333 at 3, most 4 at 1; switch-kd: "
    )
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert len(alts) == page.count("<img ") > 4
    assert "" not in alts
    assert (
        "student sft: 30 % of its attention is on the picture, most of it, 20.0 %, in row 2 of 2 and column 2 of 2"
        in alts
    )


def test_a_difference_has_a_colour_where_its_interval_leaves_0_out_and_pictures_are_drawn_whole(evidence):
    """Of two pictures, the one's thirty questions are all won, the other's none: drawn one by one they would be sure of it."""
    asked = next(iter(evidence.models[1].answers.values()))
    ids = [f"{picture}/{turn}" for picture in "ab" for turn in range(1, 31)]
    before = {name: replace(asked, id=name, right=False, kind=None) for name in ids}
    after = {name: replace(answer, right=name.startswith("a")) for name, answer in before.items()}
    models = [replace(evidence.models[1], answers=before), replace(evidence.models[2], answers=after)]
    few = replace(evidence, models=tuple(models))
    assert difference_intervals(few)["switch-kd"] == {OVERALL: Interval(0, 100)}
    page = render(evidence)
    cell = '<span class="apart {}">{}</span><span class="apart interval">[{}, {}]</span>'
    assert cell.format("same", "0.0", "−100.0", "+100.0") in page
    assert cell.format("same", "+66.7", "0.0", "+100.0") in page
    assert cell.format("up", "+83.3", "+50.0", "+100.0") in page
    unsure = replace(evidence, models=tuple(replace(model, answers={}) for model in evidence.models))
    assert 'class="apart up"' not in render(unsure)
    assert "No difference has an interval" in text_of(render(unsure))
    assert 'class="apart interval"' not in render(unsure)


def test_many_curves_and_points_are_told_in_part():
    curves = {f"m{i}": [(float(step), float(i)) for step in range(3)] for i in range(14)}
    models = [Model(name=name, where="", curves={"ce": curve}) for name, curve in curves.items()]
    figure = figures.losses(models, dict.fromkeys(curves, 0))["ce"]
    assert alt_texts.of_chart(figure).endswith("m11: 11 at 0, 11 at 2, least 11 at 0, most 11 at 0; and 2 more")
    kinds = {"a": {f"k{i}": 1.0 for i in range(30)}, "b": {f"k{i}": 2.0 for i in range(30)}}
    told = alt_texts.of_chart(figures.differences(kinds, "a", {"a": 0, "b": 1}))
    assert told.count("+1.0") == 24
    assert told.endswith(", and 6 more")


def test_colours_stand_out_from_both_pages():
    """3 : 1, which WCAG asks of graphics."""

    def luminance(colour: str) -> float:
        shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in {*figures.COLOURS, figures.GREY, *figures.PATHWAY_COLOURS.values()}:
        for ground in ("#ffffff", "#14181d"):
            dim, bright = sorted((luminance(colour), luminance(ground)))
            assert (bright + 0.05) / (dim + 0.05) >= 3, (colour, ground)


@pytest.mark.parametrize(
    ("terms", "axis", "note"),
    [
        (("ce", "align"), "nats per answer token", False),
        (("ce", "features"), "sum of terms with unlike units", "features (squared distance) beside"),
        (
            ("ce", "relation", "mine"),
            "sum of terms with unlike units",
            "mine (as its method defines it), relation (1 − cosine, from 0 to 2) beside",
        ),
    ],
)
def test_the_axis_of_a_sum_says_what_is_summed(evidence, terms, axis, note):
    curves = {term: [(1.0, 2.0), (2.0, 1.0)] for term in ("loss", *terms)}
    models = [replace(model, curves=curves if model.recipe else {}) for model in evidence.models]
    page = render(replace(evidence, models=tuple(models)))
    titles = {
        f["layout"]["yaxis"]["title"]["text"] for f in drawn(page).values() if f["layout"].get("yaxis", {}).get("title")
    }
    assert axis in titles
    assert ("The total adds up terms with unlike units" in text_of(page)) == bool(note)
    assert not note or note in " ".join(text_of(page).replace(" ,", ",").split())


def test_all_answers_are_data_of_the_page(evidence):
    short = replace(evidence.models[1], answers=dict(list(evidence.models[1].answers.items())[:1]))
    page = render(replace(evidence, models=(evidence.models[0], short, evidence.models[2])))
    found = json.loads(re.search(r'id="answers-data">(.*?)</script>', page, re.DOTALL)[1])
    assert (found["models"], found["kinds"]) == (["teacher", "sft", "switch-kd"], ["colour", "count", "shape"])
    assert found["rows"][0] == ["colour-0", 0, "what colour-0?", "yes", [["yes", 1, 0], ["yes", 1, 0], ["no", 0, 0]]]
    assert found["rows"][3] == ["count-1", 1, "what count-1?", "yes", [["yes", 1, 0], None, ["yes", 1, 0]]]
    none = render(replace(evidence, models=tuple(replace(model, answers={}) for model in evidence.models)))
    assert 'id="answers-data"' not in none
    assert "No answers were kept beside the results" in text_of(none)


def test_nothing_computed_is_said_to_be_asked_for(evidence):
    assert text_of(render(replace(evidence, probed=False))).count("made with --questions 0") == 3


def test_images_that_cannot_be_read_are_said_to_be_missing(evidence):
    text = text_of(render(replace(evidence, unread="test.json: no such file")))
    assert "Images and expected answers could not be read: test.json: no such file" in text
    assert "no image" in text


def test_only_the_pages_own_scripts_may_run(evidence):
    page = render(evidence)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 3
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1].replace("&#39;", "'")
    sources = " ".join(f"'sha256-{digest}'" for digest in hashes)
    assert policy == f"default-src 'none'; script-src {sources}; style-src 'unsafe-inline'; img-src data: blob:"


def test_the_benchmarks_have_a_table_of_their_own(tmp_path):
    for name, average in (("sft", 50.0), ("switch-kd", 52.5)):
        run = write_fake_run(tmp_path / name, None)
        write_benchmarks(run / "benchmarks.json", {"MME": average - 10, "POPE": average + 10}, average)
    text = text_of(render(gather([tmp_path])))
    assert "switch-kd 52.5 +2.5 42.5 +2.5 62.5 +2.5" in text
    assert "No public benchmark" not in text


def test_a_study_is_a_table_with_intervals(tmp_path):
    page = render(gather([write_study(tmp_path, {"SFT": [40.0, 50.0], "KD": [45.0, 57.0], "other": [39.0, 49.0]})]))
    text = text_of(page)
    assert "3 ways to train a student, 2 seeds; 6 of 7 runs are finished" in text
    assert "KD 51.0 ± 1.0 +6.0 [+5.0, +7.0] 2 10 9 1.50 300" in text
    assert "SFT baseline 45.0 ± 1.0 – – 2" in text
    assert "other 44.0 ± 1.0 −1.0 [−2.0, 0.0]" in text
    assert "KD 51.0 +6.0 51.0 +6.0" in text
    assert "<b>+6.0</b>" in page
    assert "<b>−1.0</b>" not in page  # its interval holds 0
    forest = next(figure for figure in drawn(page).values() if "ticktext" in figure["layout"].get("yaxis", {}))
    assert forest["layout"]["yaxis"]["ticktext"] == ["other", "KD"]
    dots = [trace["x"] for trace in forest["data"] if trace["name"] == "KD"]
    assert dots == [[5.0, 7.0], [6.0]]


def test_arms_with_a_baseline_of_their_own_are_held_against_it_everywhere(tmp_path):
    small, distilled = "student of 1 layer, SFT", "student of 1 layer, Switch-KD"
    folder = write_study(tmp_path, {"Switch-KD": [60.0, 62.0], small: [30.0, 32.0], distilled: [41.0, 45.0]})
    tree = json.loads((folder / "study.json").read_text())
    tree["baselines"] = {"Switch-KD": "Switch-KD", small: "Switch-KD", distilled: small}
    tree["table"][2] |= {"difference": 12.0, "low": 11.0, "high": 13.0}
    (folder / "study.json").write_text(json.dumps(tree))
    page = render(gather([folder]))
    text = text_of(page)
    assert f"{distilled} against {small} 43.0 ± 1.0 +12.0 [+11.0, +13.0]" in text
    assert f"{distilled} against {small} 43.0 +12.0 43.0 +12.0" in text  # each kind too
    assert f"{small} 31.0 −30.0" in text
    assert "but of a method that is against another, to that one" in text
    assert "difference to what each is compared with" in text
    # their costs are 1.5 and 2 times what they are compared with, so 1.5 and 3 times the study's baseline
    points = [
        f for f in drawn(page).values() if "cost" in f["layout"].get("xaxis", {}).get("title", {}).get("text", "")
    ]
    assert {trace["name"]: trace["x"] for trace in points[0]["data"]} == {
        "Switch-KD": [1.0],
        small: [1.5],
        distilled: [3.0],
    }
    forest = next(figure for figure in drawn(page).values() if "ticktext" in figure["layout"].get("yaxis", {}))
    assert forest["layout"]["yaxis"]["ticktext"] == [small, "student of 1 layer,<br>Switch-KD"]
    assert [trace["x"] for trace in forest["data"] if trace["name"] == distilled] == [[11.0, 13.0], [12.0]]


def test_what_no_run_logged_has_no_column(tmp_path):
    write_results(tmp_path / "a.json", "100000")
    assert "per step" not in text_of(render(gather([tmp_path / "a.json"])))


def test_differences_have_a_sign_and_one_decimal():
    assert [signed(value) for value in (1.25, -1.25, 0.04, -0.04, 10)] == ["+1.2", "−1.2", "0.0", "0.0", "+10.0"]


def test_long_curves_are_averaged():
    thin = figures.thinned([(float(step), float(step)) for step in range(1000)])
    assert len(thin) == figures.POINTS
    assert thin[0] == (1.5, 1.5)
    assert thin[-1] == (997.5, 997.5)


def test_plotly_is_given_no_markup():
    assert figures.plain("<a href='x'>\n&lt;b</a>") == "&lt;a href=&#x27;x&#x27;&gt; &amp;lt;b&lt;/a&gt;"
    assert len(figures.plain("x" * 100)) == 60
    assert figures.wrapped("<b> & 'x'") == "&lt;b&gt; &amp; &#x27;x&#x27;"
    assert figures.wrapped("<" * 200).count("<br>") == 1


def test_attention_is_bright_where_the_map_is_largest():
    image = pictures.overlay(png(), [[0.0, 0.0], [0.0, 0.5]])
    light = np.asarray(image.convert("L"), dtype=float)
    assert image.size == (pictures.SIDE, pictures.SIDE)
    assert light[-20:, -20:].mean() > 2 * light[:20, :20].mean()
    flat = np.asarray(pictures.overlay(png(), [[0.5, 0.5], [0.5, 0.5]]))
    assert flat.max() - flat.min() < 60


def test_large_images_become_small():
    image = Image.effect_noise((900, 300), 40).convert("RGB")
    file = io.BytesIO()
    image.save(file, "PNG")
    assert pictures.small(file.getvalue()).size == (224, 75)
    assert pictures.uri(pictures.small(file.getvalue())).startswith("data:image/webp;base64,")
    assert pictures.overlay(file.getvalue(), [[1.0]]).size == (224, 75)
