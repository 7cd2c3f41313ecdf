"""Who may import whom: the arrows of docs/architecture.md, read off the source."""

import ast
from pathlib import Path

import pytest

import switchkd

SOURCE = Path(switchkd.__file__).parent
#: part → the parts it may import, besides itself, `batch`, `names` and `signals`.
ALLOWED: dict[str, set[str]] = {
    "batch": set(),
    "names": set(),
    "signals": set(),
    "versions": set(),
    "files": set(),
    "manifest": {"files"},
    "interrupts": set(),
    "console": set(),
    "processes": set(),
    "agree": {"processes"},
    "rendering": set(),
    "losses": set(),
    "lazy": set(),
    "typed_fields": set(),
    "lock": set(),
    "models": {"lazy", "manifest", "rendering"},
    "results": {"files"},
    "methods": {"losses", "models", "typed_fields"},
    "data": {"models", "files", "console", "lock", "processes", "rendering"},
    "pairing": {"data", "models"},
    "recipe": {"data", "files", "methods", "models", "results", "typed_fields"},
    "world": {"data", "files"},
    "convert": {"data", "files", "models"},
    "train": {
        "agree",
        "console",
        "data",
        "evaluate",
        "files",
        "interrupts",
        "lock",
        "losses",
        "manifest",
        "methods",
        "models",
        "pairing",
        "processes",
        "recipe",
        "results",
    },
    "export": {"convert", "data", "models", "train"},
    "evaluate": {"agree", "console", "data", "lazy", "models", "processes", "results", "versions"},
    "doctor": {"console", "data", "lazy", "losses", "methods", "models", "pairing", "processes", "recipe", "train"},
    "chat": {"console", "data", "evaluate", "models"},
    "report": {"data", "evaluate", "files", "losses", "methods", "models", "pairing", "recipe", "results", "train"},
    "given": {"data", "files"},
    "distillation": {
        "agree",
        "console",
        "data",
        "doctor",
        "evaluate",
        "given",
        "methods",
        "processes",
        "recipe",
        "results",
        "train",
    },
    "study": {"data", "files", "models", "recipe", "results", "typed_fields", "world"},
    "pretraining": {
        "console",
        "convert",
        "distillation",
        "evaluate",
        "files",
        "lazy",
        "methods",
        "recipe",
        "world",
    },
    "demonstration": {"console", "distillation", "evaluate", "files", "methods", "recipe", "report", "world"},
    "commands": {
        "chat",
        "console",
        "convert",
        "data",
        "demonstration",
        "distillation",
        "doctor",
        "evaluate",
        "export",
        "models",
        "pairing",
        "pretraining",
        "processes",
        "recipe",
        "report",
        "results",
        "study",
        "train",
        "versions",
    },
    "cli": {"commands", "console", "interrupts", "recipe", "versions"},
    # the public interface, which nothing in the package imports
    "__init__": {
        "data",
        "distillation",
        "evaluate",
        "losses",
        "methods",
        "models",
        "pairing",
        "recipe",
        "train",
        "versions",
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
    forbidden = imported_parts(file) - ALLOWED[part] - {part, "batch", "names", "signals"}
    assert not forbidden, f"{part} must not import {', '.join(sorted(forbidden))}"


def test_no_part_can_reach_itself():
    """No circle: taking away, again and again, the parts that need no other leaves none."""
    left = dict(ALLOWED)
    while free := {part for part, needed in left.items() if not needed & left.keys()}:
        left = {part: needed for part, needed in left.items() if part not in free}
    assert not left


def test_no_two_modules_have_one_name():
    names = [file.stem for file in FILES if file.stem != "__init__"]
    assert not {name for name in names if names.count(name) > 1}


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    folder = tmp_path / "losses"
    folder.mkdir()
    file = folder / "probe.py"
    file.write_text(
        "import switchkd.pairing.pair\nfrom switchkd import data\nfrom switchkd.train.run import fit\n"
        "def later():\n    from ..world import write\n    from .knee import knee\n"
    )
    monkeypatch.setattr("test_imports.SOURCE", tmp_path)
    assert imported_parts(file) == {"pairing", "data", "train", "world", "losses"}


def test_no_module_is_long():
    long = {
        str(file.relative_to(SOURCE)): count for file in FILES if (count := len(file.read_text().splitlines())) > 400
    }
    assert not long
