"""docs/troubleshooting.md quotes messages that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_message_is_in_the_source():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    source = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    assert len(set(quoted)) == len(quoted) == 38
    assert [message for message in quoted if message not in source] == []
