"""Who may import whom: the arrows of docs/architecture.md, read off the source."""

import ast
from pathlib import Path

import pytest

import switchkd

SOURCE = Path(switchkd.__file__).parent
#: part → the parts it may import, besides itself and `types`.
ALLOWED = {
    "types": set(),
    "losses": set(),
    "models": set(),
    "data": set(),
    "report": set(),
    "world": set(),
    "methods": {"losses"},
    "evaluate": {"models", "data"},
    "convert": {"models", "data"},
    "train": {"methods", "models", "losses", "data"},
    "doctor": {"train", "methods", "models", "data", "losses"},
    "study": {"train", "world"},
    "pipeline": {"doctor", "evaluate", "train"},
    "probe": {"report", "evaluate", "train", "methods", "models", "data", "losses"},
    "reporting": {"probe", "report", "train", "data"},
    "demo": {"pipeline", "evaluate", "report", "train", "methods", "world"},
    "cli": {"commands", "train"},
    "commands": {
        "convert",
        "demo",
        "pipeline",
        "doctor",
        "evaluate",
        "report",
        "study",
        "reporting",
        "train",
        "methods",
        "models",
        "data",
        "world",
    },
}


def imported_parts(file: Path) -> set[str]:
    """The parts of the package that a file imports, absolutely or relatively, anywhere in it."""
    package = ["switchkd", *file.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "switchkd" else [module]
        found |= {name.split(".")[1] for name in names if name.startswith("switchkd.")}
    return found


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_follow_the_arrows(file):
    part = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if part == "__init__":
        assert imported_parts(file) == set()
        return
    forbidden = imported_parts(file) - ALLOWED[part] - {part, "types"}
    assert not forbidden, f"{part} must not import {', '.join(sorted(forbidden))}"


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    folder = tmp_path / "losses"
    folder.mkdir()
    file = folder / "probe.py"
    file.write_text(
        "import switchkd.models.pair\nfrom switchkd import data\nfrom switchkd.train.run import fit\n"
        "def later():\n    from ..world import write\n    from .knee import knee\n"
    )
    monkeypatch.setattr("test_imports.SOURCE", tmp_path)
    assert imported_parts(file) == {"models", "data", "train", "world", "losses"}


def test_no_module_is_long():
    long = {
        str(file.relative_to(SOURCE)): count for file in FILES if (count := len(file.read_text().splitlines())) > 400
    }
    assert not long
