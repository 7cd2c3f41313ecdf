"""The pages name what there is, and their links lead somewhere."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import transformers
import yaml
from shown_diffs import hold

import switchkd
from switchkd.methods import METHODS
from switchkd.models.capture import Site
from switchkd.models.families import FAMILIES, Family
from switchkd.results import StudyResults
from switchkd.signals import Route
from switchkd.study.figure import figure
from switchkd.study.study_table import markdown_kinds, markdown_table
from switchkd.study.summary import title
from switchkd.world import KINDS
from switchkd.world.grid_questions import GRID_KINDS
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
    kinds = [site for kind in Site.__subclasses__() for site in (kind, *kind.__subclasses__())]
    sites = {site.__name__ for site in kinds if site.__module__.startswith("switchkd.")}
    assert {*get_args(Route), *sites} == set(re.findall(r"(?<=[|,] )`(\w+)`(?=[ ,])", page))


def test_the_world_has_a_row_for_every_kind_and_difficulty():
    found = rows("world.md")
    assert found.keys() == KINDS.keys() | GRID_KINDS.keys() | set(DIFFICULTIES)
    for difficulty, (fewest, most) in THINGS.items():
        assert f"| {fewest}–{most} |" in found[difficulty]
    photographs = (DOCS / "world.md").read_text(encoding="utf-8").split("## A world of photographs")[1]
    assert re.findall(r"^\| `(\w+)` \|", photographs, re.MULTILINE) == list(GRID_KINDS)


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    assert sorted(re.findall(r"^(\w+)$", index, re.MULTILINE)) == sorted(
        page.stem for page in PAGES[2:] if page.stem != "index"
    )


def test_the_python_reference_has_every_public_name_once():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\.\. (?:auto|py:)(?:function|class|data):: switchkd\.(\w+)", page, re.MULTILINE)
    assert sorted(documented) == sorted(switchkd.__all__)


def test_what_is_cited_is_what_the_citation_file_says():
    page = (DOCS / "citing.md").read_text(encoding="utf-8")
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = software["references"]
    entries = [
        dict(re.findall(r"(\w+)\s*= \{+(.*?)\}+,?$", entry, re.MULTILINE)) for entry in page.split("```bibtex")[1:]
    ]
    shown = [{name: entry[name] for name in ("title", "author")} for entry in entries]
    assert shown == [{"title": one["title"], "author": one["authors"][0]["name"]} for one in (paper, software)]
    assert (entries[0]["url"], entries[0]["year"]) == (paper["url"], str(paper["year"]))
    assert f"arXiv:{entries[0]['eprint']}" == paper["identifiers"][0]["value"]
    assert (entries[1]["version"], entries[1]["license"]) == (switchkd.__version__, software["license"])


def test_the_costs_of_methods_are_those_of_the_study():
    page = (DOCS / "which_method.md").read_text(encoding="utf-8")
    methods, _, costs = (line.strip("|\n ").split("|") for line in page.split("\n\n| `sft` ")[1].splitlines()[:3])
    arms = ["SFT", "feature KD", "LLaVA-KD", "forward KL", "BiLD", "align only", "Align-KD", "switch only", "Switch-KD"]
    table = markdown_table(StudyResults.load(ROOT / "benchmarks" / "results" / "study-tiny.json").table)
    cost = {cells[1].strip(): cells[-2].strip() for cells in (line.split("|") for line in table.splitlines())}
    assert [cell.strip() for cell in costs] == [cost[arm] for arm in arms]
    assert len(methods) == len(arms) - 1  # the split took the first


def needs_torchvision(family: type[Family]) -> bool:
    """transformers has processors of videos for torchvision alone, and says of some others that they need it."""
    kinds = [getattr(transformers, name) for name in family.processors]
    return any(
        "video_processor" in kind.get_attributes() or "torchvision" in getattr(kind, "__backends", ()) for kind in kinds
    )


def test_the_families_that_need_torchvision_are_named():
    page = (DOCS / "install.md").read_text(encoding="utf-8")
    needed, others = page.split("**torchvision.**")[1].split("\n\n")[0].split("The other five")
    named = [name for name in re.findall(r"`(\w+)`", needed) if name in FAMILIES]
    assert set(named) == {name for name, family in FAMILIES.items() if needs_torchvision(family)}
    assert len(named) == 7
    assert set(re.findall(r"`(\w+)`", others)) == FAMILIES.keys() - set(named)


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
