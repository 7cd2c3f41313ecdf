"""docs/families.md: the family that it shows as an example is the one in the source, and its list is complete."""

from shown_diffs import ROOT, hold

from switchkd.models.families import FAMILIES


def test_the_shown_lines_are_in_the_source():
    hold("families.md", "src/switchkd/models/families/internvl.py")


def test_every_family_is_in_the_list():
    page = (ROOT / "docs/families.md").read_text()
    assert all(f"`{model_type}`" in page for model_type in FAMILIES)
