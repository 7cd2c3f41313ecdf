import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fused_cases import fused, gradients, inputs

from switchkd.losses import kernels
from switchkd.methods import SwitchKD

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


@pytest.mark.long
def test_interpreted_kernels_give_what_torch_gives_in_few_launches():
    run("quick", {"TRITON_INTERPRET": "1"})


@pytest.mark.slow
def test_interpreted_kernels_choose_and_compare_as_torch_does():
    run("whole", {"TRITON_INTERPRET": "1"})


@pytest.mark.slow
def test_the_tests_of_losses_pass_with_kernels_on():
    """Wherever float32 logits come, as `auto` chooses on a GPU."""
    tests = sorted(str(path) for path in Path(__file__).parent.glob("test_fused*.py"))
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning", *tests],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-5000:]


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path):
    run("compile_for_a_gpu", {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)})


@pytest.mark.gpu
@pytest.mark.parametrize("window", [128, 200])
def test_kernels_on_a_gpu_give_what_torch_gives_over_a_real_vocabulary(window):
    here, method = torch.device("cuda"), SwitchKD(window=window)
    assert kernels.why_not(here) is None
    x = inputs(tokens=70, rows=151_936, teacher_rows=151_900, dtype=torch.bfloat16)
    x = replace(x, **{name: y if y is None else y.detach().to(here) for name, y in vars(x).items()})
    for y in x.learned:
        y.requires_grad_()
    ours, plain = (
        fused(method, x, replace(method.chunk_loss(), kernels=name), vocabulary=151_665, chunk=32)
        for name in ("triton", "torch")
    )
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-6, atol=0)
    assert {name: float(k) for name, k in ours.statistics.items()} == {
        name: float(k) for name, k in plain.statistics.items()
    }
    for mine, other in zip(gradients(ours.loss, x), gradients(plain.loss, x), strict=True):
        assert (mine - other).float().norm() < 2**-7 * other.float().norm()


@pytest.mark.long
def test_losses_need_no_triton():
    run("without_triton", {"TRITON_INTERPRET": "1"}, "sys.modules['triton'] = None")


def test_logits_on_a_cpu_are_left_to_torch():
    assert kernels.why_not(torch.device("cpu")) == "they need a GPU, and this is on cpu"
    x, loss = inputs(dtype=torch.float32), SwitchKD(window=8).chunk_loss()
    assert loss.kernels == "auto"
    assert fused(SwitchKD(window=8), x, loss).loss.isfinite()
    with pytest.raises(
        ValueError,
        match=r'kernels="triton" cannot compute this loss: they need a GPU, and this is on cpu\. Use kernels="auto"',
    ):
        fused(SwitchKD(window=8), x, type(loss)(1.0, 1.0, loss.settings, "triton"))
