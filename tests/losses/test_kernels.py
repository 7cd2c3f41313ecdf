import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from switchkd.losses import kernels

CASES = Path(__file__).parents[1] / "lib" / "triton_cases.py"


def run(case, environment, *before):
    start = f"import sys, runpy; sys.path.insert(0, {str(CASES.parent)!r}); sys.argv[1:] = [{case!r}]"
    start = "; ".join([start, *before, f"runpy.run_path({str(CASES)!r}, run_name='__main__')"])
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", start],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout == "done\n"


def test_interpreted_kernels_give_what_torch_gives():
    run("interpret", {"TRITON_INTERPRET": "1"})


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path):
    run("compile_for_a_gpu", {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)})


def test_losses_need_no_triton():
    run("without_triton", {}, "sys.modules['triton'] = None")


def test_logits_on_a_cpu_are_refused():
    with pytest.raises(ValueError, match="needs a GPU, but the logits are on cpu"):
        kernels.scan(torch.zeros(2, 64))
