"""torchvision beside a CPU build of torch, as `make env` puts it there."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision_operators

HERE = Path(torchvision_operators.__file__)


def python(*lines: str) -> list[str]:
    """What a new Python, which has `torchvision_operators` installed as a .pth file does it, prints for these lines."""
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.split()


def test_a_start_of_python_imports_no_torch():
    lines = ["import sys, torchvision_operators as them", "them.install()", "them.install()", "import json.tool"]
    assert python(*lines, "print('torch' in sys.modules, sys.meta_path.count(them.DeclareOperators))") == ["False", "1"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("build", "theirs", "declared"),
    [
        ("None", [], "12"),
        ("None", ["library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')"], "0"),
        ("'13.0'", [], "0"),
    ],
    ids=["a CPU build", "operators that loaded", "a CUDA build"],
)
def test_operators_are_declared_only_where_they_are_missing(tmp_path, build, theirs, declared):
    """`torchvision` here is a stand-in that loads its operators in `extension` and names them in `_meta_registrations`."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from . import extension, _meta_registrations\n")
    loading = ["import torch", *(["library = torch.library.Library('torchvision', 'DEF')"] if theirs else []), *theirs]
    (package / "extension.py").write_text("\n".join(loading))
    (package / "_meta_registrations.py").write_text("")
    shutil.copy(HERE, tmp_path)
    lines = [
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})",
        "import torch, torchvision_operators as them",
        f"torch.version.cuda = {build}",
        "sys.meta_path = [finder for finder in sys.meta_path if getattr(finder, '__name__', '') != 'DeclareOperators']",
        "them.install()",
        "import torchvision",
        "print(len(them.OPERATORS) if them.DeclareOperators.library else 0)",
    ]
    assert python(*lines) == [declared]


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not here: `make env`")
def test_processors_of_images_and_videos_import_in_processes_that_tests_start():
    lines = [
        "import transformers",
        "names = 'Qwen2VLImageProcessor', 'Qwen3VLVideoProcessor', 'SmolVLMProcessor', 'PixtralProcessor'",
        "print(*[getattr(transformers, name).__name__ for name in names])",
    ]
    assert python(*lines) == ["Qwen2VLImageProcessor", "Qwen3VLVideoProcessor", "SmolVLMProcessor", "PixtralProcessor"]
