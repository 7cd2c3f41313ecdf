"""What is built holds what users need, and the repository's own promises about it stand."""

import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from switchkd.recipe import shipped

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Every kind of file that is not Python and must come along.
DATA = [
    "switchkd/py.typed",
    "switchkd/report/templates/page.jinja",
    "switchkd/report/templates/page.css",
    "switchkd/world/assets/README.md",
    "switchkd/world/assets/student/model.safetensors",
    "switchkd/world/assets/teacher/model.safetensors",
    "switchkd/world/assets/teacher/tokenizer.json",
    *(f"switchkd/recipes/{file.name}" for file in shipped().values()),
    *(f"switchkd/recipes/accelerate/{engine}.yaml" for engine in ("ddp", "fsdp2")),
]


class Built(NamedTuple):
    """Folders in which the two distributions lie unpacked."""

    source: Path
    wheel: Path


def build(kind: str, source: Path, target: Path) -> Path:
    """Build the `wheel` or the `sdist` of a folder by the backend that pyproject.toml names."""
    target.mkdir()
    command = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    process = subprocess.run([sys.executable, "-c", command], cwd=source, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    (file,) = target.iterdir()
    return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source distribution of this tree, and the wheel that is built from it, as package indexes and installers do."""
    here = tmp_path_factory.mktemp("package")
    outside = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", "_build")
    shutil.copytree(ROOT, here / "tree", symlinks=True, ignore=outside)
    with tarfile.open(build("sdist", here / "tree", here / "sdist")) as archive:
        archive.extractall(here / "unpacked", filter="data")
    (source,) = (here / "unpacked").iterdir()
    with zipfile.ZipFile(build("wheel", source, here / "wheel")) as archive:
        archive.extractall(here / "installed")
    return Built(source, here / "installed")


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_the_wheel_has_every_module_and_all_data(built):
    inside = files(built.wheel)
    modules = {file.relative_to(ROOT / "src").as_posix() for file in (ROOT / "src").rglob("*.py")}
    assert modules | set(DATA) <= inside
    assert f"switchkd-{PROJECT['version']}.dist-info/licenses/LICENSE" in inside
    assert {name.split("/")[0] for name in inside} == {"switchkd", f"switchkd-{PROJECT['version']}.dist-info"}


@pytest.mark.slow
def test_the_source_distribution_builds_the_wheel_and_brings_no_tests(built):
    inside = files(built.source)
    assert {f"src/{name}" for name in DATA} | {"LICENSE", "README.md", "pyproject.toml"} <= inside
    assert not {name for name in inside if name.startswith(("tests/", "benchmarks/", "examples/", "docs/"))}


@pytest.mark.slow
def test_an_installed_package_finds_its_recipes(built):
    command = "from switchkd.recipe import shipped; print(*shipped().values(), sep='\\n')"
    process = subprocess.run(
        [sys.executable, "-c", command],
        env={"PYTHONPATH": str(built.wheel)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.split() == [str(built.wheel / "switchkd/recipes" / file.name) for file in shipped().values()]


def test_recipes_lie_where_pages_say():
    assert {name: file.resolve() for name, file in shipped().items()} == {
        file.stem: file.resolve() for file in (ROOT / "recipes").glob("*.yaml")
    }


@pytest.mark.slow
def test_the_description_has_no_link_that_leads_nowhere(built):
    metadata = message_from_string(next(built.wheel.glob("*.dist-info/METADATA")).read_text(encoding="utf-8"))
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "## Two commands" in metadata.get_payload()
    assert "](docs/" not in metadata.get_payload()


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        (None, "*The switch*\n\nSee the log, [Paper](https://arxiv.org/abs/1) and [below](#below)"),
        (
            "https://git.example/us/it/",
            "![The switch](https://git.example/us/it/raw/HEAD/docs/switch.svg)\n\n"
            "See [the log](https://git.example/us/it/blob/HEAD/docs/log.md), [Paper](https://arxiv.org/abs/1) and [below](#below)",
        ),
    ],
)
def test_links_of_the_description(repository, expected):
    description = runpy.run_path(str(ROOT / "setup.py"))["description"]
    readme = "![The switch](docs/switch.svg)\n\nSee [the log](docs/log.md), [Paper](https://arxiv.org/abs/1) and [below](#below)"
    assert description(readme, repository) == expected


def test_the_lowest_versions_are_the_lower_bounds():
    bounds = {}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement}: state a lower bound"
        bounds[requirement.name] = bound.version
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    others = ("lmms-eval", "torchvision")  # what `make env` installs beside the package
    assert lowest == bounds | {name: lowest[name] for name in others}


def test_every_extra_has_lower_bounds():
    extras = [Requirement(name) for names in PROJECT["optional-dependencies"].values() for name in names]
    assert [str(extra) for extra in extras if not extra.specifier and extra.name != PROJECT["name"]] == []
