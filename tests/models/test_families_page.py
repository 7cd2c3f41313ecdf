"""docs/families.md: the family that it shows as an example is the one in the source, and its list is complete."""

import re
from pathlib import Path

import pytest

from switchkd.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/families.md").read_text()


def shown() -> dict[str, str]:
    """File → the lines that the page's diff adds to it."""
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)
    files = re.split(r"^\+\+\+ (.*)$", diff, flags=re.MULTILINE)[1:]
    return {
        name: re.sub(r"^\+", "", body.strip("\n"), flags=re.MULTILINE)
        for name, body in zip(files[::2], files[1::2], strict=True)
    }


@pytest.mark.parametrize("name", shown())
def test_the_shown_lines_are_in_the_source(name):
    source = (ROOT / name).read_text()
    if name.endswith("internvl.py"):
        assert shown()[name] + "\n" == source
    else:
        lines = source.splitlines()
        assert all(line in lines for line in shown()[name].splitlines())


def test_every_family_is_in_the_list():
    assert all(f"`{model_type}`" in PAGE for model_type in FAMILIES)
