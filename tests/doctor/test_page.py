"""docs/doctor.md has a line for every check."""

from pathlib import Path

import pytest
from doctor.test_sound import CHECKS, OF_TRAINED_TEACHERS

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"


@pytest.mark.parametrize("check", sorted(CHECKS | OF_TRAINED_TEACHERS | {"images"}))
def test_every_check_is_explained(check):
    named = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert check in {name.strip() for cell in named for name in cell.split(",")}
