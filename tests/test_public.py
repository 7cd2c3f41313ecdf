"""The public interface: what `import switchkd` offers, what it costs, and its version without an installation."""

import ast
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import switchkd

ROOT = Path(__file__).parents[1]
PACKAGE = Path(switchkd.__file__).parent


def python(code: str, *flags: str, path: Path = PACKAGE.parent) -> str:
    """What `code` prints in a process of its own that finds the package below `path`."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, *flags, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


def test_every_public_name_is_there():
    for name in switchkd.__all__:
        value = getattr(switchkd, name)
        assert value is getattr(switchkd, name)
        assert callable(value) or not inspect.ismodule(value)
        assert name in dir(switchkd)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'switchkd' has no attribute 'distil'"):
        _ = switchkd.distil


def test_no_public_name_is_that_of_a_module():
    """Importing the module would replace the function under the same name."""
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert modules & set(switchkd.__all__) == {"evaluate"}


def test_evaluate_is_a_function_and_a_package():
    module = import_module("switchkd.evaluate.evaluation")  # as any import of a module below it
    package = sys.modules["switchkd.evaluate"]
    assert switchkd.evaluate is package is package.evaluate
    assert callable(switchkd.evaluate)
    assert inspect.signature(switchkd.evaluate) == inspect.signature(module.evaluate_model)
    with pytest.raises(ValueError, match="batch_size and max_new_tokens must be at least 1, got 0 and 64"):
        switchkd.evaluate("model", "data.json", batch_size=0)
    code = "from switchkd import evaluate; import sys; print(callable(evaluate), 'torch' in sys.modules)"
    assert python(code).split() == ["True", "False"]


def test_type_checkers_see_the_names_that_are_there():
    imported = {
        node.module.removeprefix("switchkd."): tuple(alias.name for alias in node.names)
        for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("switchkd.")
    }
    assert imported == switchkd._MODULES
    assert sorted(name for names in imported.values() for name in names) == sorted(switchkd.__all__)


LOADED = "print(*sorted(name for name in sys.modules if name.split('.')[0] == 'switchkd'))"


def test_importing_the_package_imports_nothing_else():
    assert python(f"import sys, switchkd; {LOADED}").split() == ["switchkd"]


def test_the_help_imports_the_commands_and_no_model_library():
    quiet = "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])"
    code = f"import contextlib, io, sys\nfrom switchkd.cli import main\n{quiet}\n"
    parts = {name.split(".")[1] for name in python(code + LOADED).split() if "." in name}
    assert parts == {"chat", "cli", "commands", "recipe", "typed_fields", "versions"}
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    slow = {"torch", "transformers", "datasets", "accelerate", "peft", "numpy", "PIL", "plotly", "pyarrow", "gradio"}
    assert slow & set(python(code).split()) == set()


def test_a_source_tree_that_was_never_installed_has_its_version(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "src" / "switchkd", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    # -S: without site-packages, so without the metadata of an installation
    printed = python("import switchkd; print(switchkd.__version__)", "-S", path=tmp_path / "src")
    assert printed.strip() == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (tmp_path / "pyproject.toml").unlink()
    code = "from switchkd.versions import versions; print(*versions('torch'))"
    assert python(code, "-S", path=tmp_path / "src").split() == ["python", "switchkd"]
    printed = python("import switchkd; print(switchkd.__version__)", "-S", path=tmp_path / "src")
    assert printed.strip() == "0+unknown"
