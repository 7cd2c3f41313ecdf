"""docs/cli.md is what the commands say of themselves."""

import re
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import pytest
from cli_page import INNER, as_markdown

from switchkd.commands import VERBS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_parsers_say():
    tested = re.search(r"^tyro==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if version("tyro") != tested[1]:
        pytest.skip(
            f"the page is written with tyro {tested[1]}, which lays out help in another way than {version('tyro')}"
        )
    assert as_markdown() == PAGE, "write it anew: PYTHONPATH=tests/lib python -m cli_page > docs/cli.md"


def test_every_command_has_its_section_with_every_flag():
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
    verbs = {verb.__name__.lower(): verb for verb in VERBS}
    assert sections.keys() == verbs.keys() | {f"{name} {inner}" for name, inners in INNER.items() for inner in inners}
    flags = {name: set(re.findall(r"--([a-z][a-z-]*)", text)) for name, text in sections.items()}
    without = {
        f"{name}.{one.name}"
        for name, verb in verbs.items()
        for one in fields(verb)
        if one.name.rstrip("_").replace("_", "-") not in flags[name]
    }
    assert without == {
        "train.recipe", "cache.recipe", "evaluate.model", "evaluate.questions", "report.runs", "chat.models", "doctor.recipe",
        "study.study", "world.photographs", "recipe.names", "init.output", "convert.source", "convert.target",
        "export.model", "export.output", "data.action",
    }  # fmt: skip
