"""Makes README.md the description of the built package; everything else is in pyproject.toml."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)")


def description(readme: str, repository: str | None) -> str:
    """Return `readme` without relative links, which lead nowhere on a package index.

    Args:
        readme: Markdown.
        repository: address of the public repository, which the links then lead to. None: links become their text, pictures their caption.
    """

    def replaced(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if repository is None:
            return f"*{text}*" if picture else text
        return f"{picture}[{text}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/HEAD/{target})"

    return _LINK.sub(replaced, readme)


if __name__ == "__main__":
    urls = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    setup(
        long_description=description(Path("README.md").read_text(encoding="utf-8"), urls.get("Repository")),
        long_description_content_type="text/markdown",
    )
