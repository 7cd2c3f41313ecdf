"""The study's picture: what stands where, and that names stay text."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import ImageFont

from switchkd.results.study_results import ArmSummary
from switchkd.study.figure import AXIS, LEFT, figure

SVG = "{http://www.w3.org/2000/svg}"


def row(arm, *differences, low=-1.0, high=1.0):
    mean = sum(differences) / len(differences) if differences else None
    bounds = (low, high) if differences else (None, None)
    return ArmSummary(arm, None, len(differences), 50.0, None, mean, *bounds, differences, 1.0, 1.0, 1.0)


def circles(svg, radius):
    return [float(c.get("cx")) for c in ElementTree.fromstring(svg).iter(f"{SVG}circle") if c.get("r") == radius]


def test_points_stand_on_one_scale():
    svg = figure([row("SFT"), row("A", 0.0, 10.0, low=0, high=10)], title="t")
    left, right = circles(svg, "4")
    (mean,) = circles(svg, "6")
    assert LEFT <= left < right <= LEFT + AXIS
    assert mean == pytest.approx((left + right) / 2, abs=0.1)
    ticks = {
        t.text: float(t.get("x"))
        for t in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if t.get("text-anchor") == "middle"
    }
    assert ticks["0"] == pytest.approx(left, abs=0.1)
    assert ticks["+10"] == pytest.approx(right, abs=0.1)


@pytest.mark.parametrize(
    "name", ["A", "other, feature KD, equal compute", "the switch through the first layer, and features, 375 rows"]
)
def test_a_long_name_is_not_cut(name):
    svg = ElementTree.fromstring(figure([row(name, 1.0)], title="t"))
    (text,) = (element for element in svg.iter(f"{SVG}text") if element.text == name)
    begin = float(text.get("x")) - ImageFont.load_default(float(text.get("font-size"))).getlength(name)
    assert text.get("text-anchor") == "end"
    assert begin > 0
    widest = max(float(text.get("x")) for text in svg.iter(f"{SVG}text"))
    assert float(svg.get("viewBox").split()[2]) > widest + 100  # the numbers at the right have the room they had


def test_a_long_title_is_not_cut():
    title = "differences of students that share nothing with a teacher of photographs: " * 2
    svg = ElementTree.fromstring(figure([row("A", 1.0)], title=title))
    end = 16 + ImageFont.load_default(15).getlength(title) * 1.15  # the title is bold
    assert float(svg.get("viewBox").split()[2]) >= end


def test_an_arm_without_a_difference_has_no_line():
    svg = figure([row("SFT"), row("A", 1.0)], title="t")
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "A" in texts
    assert "SFT" not in texts
    assert "+1.0  [-1.0, +1.0]" in texts
    with pytest.raises(ValueError, match="no arm has a difference"):
        figure([row("SFT")], title="t")


@pytest.mark.parametrize("spread", [0.0, 0.3, 7.0, 95.0])
def test_ticks_are_few_and_round(spread):
    svg = figure([row("A", 0.0, spread, low=0, high=spread)], title="t")
    ticks = [t.text for t in ElementTree.fromstring(svg).iter(f"{SVG}text") if re.fullmatch(r"[+-]?[\d.e-]+", t.text)]
    assert 2 <= len(ticks) <= 12


def test_the_axis_names_the_metric():
    assert "points of exact match, difference" in figure([row("A", 1.0)], title="t")
    assert "points of anls, difference" in figure([row("A", 1.0)], title="t", metric="anls")


def test_names_stay_text():
    svg = figure([row("<script>alert(1)</script>&\"'", 1.0)], title="</svg><b>")
    assert "<script" not in svg
    assert "<b>" not in svg
    texts = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "<script>alert(1)</script>&\"'" in texts
