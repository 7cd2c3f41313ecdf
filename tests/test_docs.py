"""The pages name what there is, and their links lead somewhere."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from shown_diffs import hold

import switchkd
from switchkd.methods import METHODS
from switchkd.models.capture import Site
from switchkd.results import StudyResults
from switchkd.signals import Route
from switchkd.study.figure import figure
from switchkd.study.study_table import markdown_kinds, markdown_table
from switchkd.study.summary import title
from switchkd.world import KINDS
from switchkd.world.scenes import DIFFICULTIES, THINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def rows(page: str) -> dict[str, str]:
    """First cell → line, of all tables of a page whose first cell is code."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    return {found[1]: line for line in lines if (found := re.match(r"\| `([^`]+)` \|", line))}


def test_every_method_has_a_row_with_its_knobs():
    found = rows("methods.md")
    assert found.keys() == METHODS.keys()
    for name, method in METHODS.items():
        assert [knob.name for knob in fields(method) if f"`{knob.name}`" not in found[name]] == []


def test_the_method_that_is_shown_is_the_one_in_the_source():
    hold("methods.md", "src/switchkd/methods/llava_kd.py")


def test_every_need_is_explained():
    page = (DOCS / "methods.md").read_text(encoding="utf-8").split("What `needs` may name")[1].split("\n\n")[1]
    sites = {site.__name__ for site in Site.__subclasses__() if site.__module__.startswith("switchkd.")}
    assert {*get_args(Route), *sites} == set(re.findall(r"(?<=[|,] )`(\w+)`(?=[ ,])", page))


def test_the_world_has_a_row_for_every_kind_and_difficulty():
    found = rows("world.md")
    assert found.keys() == KINDS.keys() | set(DIFFICULTIES)
    for difficulty, (fewest, most) in THINGS.items():
        assert f"| {fewest}–{most} |" in found[difficulty]


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    assert sorted(re.findall(r"^(\w+)$", index, re.MULTILINE)) == sorted(
        page.stem for page in PAGES[2:] if page.stem != "index"
    )


def test_the_python_reference_has_every_public_name_once():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. (?:auto|py:)(?:function|class|data):: switchkd\.(\w+)", page, re.MULTILINE)
    assert sorted(documented) == sorted(switchkd.__all__)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("study-*.json")))
def test_the_tables_of_studies_are_those_of_their_results(name):
    study = StudyResults.load(ROOT / "benchmarks" / "results" / f"{name}.json")
    page = (DOCS / "studies.md").read_text()
    assert markdown_table(study.table) in page
    if name == "study-tiny":
        assert markdown_kinds(study) in page
    drawn = (DOCS / f"{name}.svg").read_text()
    assert drawn == figure(study.table, title=title(name, study.baselines))
