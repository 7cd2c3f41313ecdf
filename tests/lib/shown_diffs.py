"""The diffs that pages show, to be held against the source."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def shown(page: str, whole: str) -> dict[str, str]:
    """File → the lines that a diff of a page under docs/ adds to it: the one diff that shows the file `whole`."""
    diffs = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    (diff,) = [diff for diff in diffs if f"+++ {whole}\n" in diff]
    files = re.split(r"^\+\+\+ (.*)$", diff, flags=re.MULTILINE)[1:]
    return {
        name: re.sub(r"^\+", "", body.strip("\n"), flags=re.MULTILINE)
        for name, body in zip(files[::2], files[1::2], strict=True)
    }


def hold(page: str, whole: str) -> None:
    """The file `whole` is shown from start to end, and the lines shown of the others beside it are in them."""
    for name, lines in shown(page, whole).items():
        source = (ROOT / name).read_text()
        if name == whole:
            assert lines + "\n" == source, name
        else:
            missing = [line for line in lines.splitlines() if line not in source.splitlines()]
            assert not missing, (name, missing)
