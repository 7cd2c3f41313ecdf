"""Run in a process of its own by losses/test_kernels.py: Triton decides when it is imported whether it interprets."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch
from fused_cases import fused, gradients, inputs

from switchkd.losses.knee import BLOCK
from switchkd.methods import SwitchKD


def interpret():
    """The kernels by Triton's interpreter, beside torch."""
    from switchkd.losses import kernels

    generator = torch.Generator().manual_seed(0)
    # One block, several strips, an incomplete block at the end of a strip and within one, no token at all.
    for tokens, rows in ((2, 64), (3, 9000), (1, 4097), (2, 130), (0, 70)):
        logits = (8 * torch.randn(tokens, rows, generator=generator)).round(decimals=1)  # with ties
        targets = torch.randint(rows, (tokens,), generator=generator)
        found = kernels.scan(logits)
        padded = torch.nn.functional.pad(logits, (0, -rows % BLOCK), value=-torch.inf)
        assert torch.equal(found.maxima, padded.unflatten(1, (-1, BLOCK)).amax(dim=-1))
        exact = logits.double().logsumexp(dim=-1)
        torch.testing.assert_close(found.log_sum_exp.double(), exact, rtol=1e-6, atol=0)
        expected = logits.double().softmax(dim=-1)
        expected[torch.arange(tokens), targets] -= 1
        overwritten = logits.clone()
        assert kernels.softmax_gradient_(overwritten, found.log_sum_exp, targets) is overwritten
        torch.testing.assert_close(overwritten.double(), expected, rtol=1e-5, atol=1e-7)
    # Rows that are part of wider ones, as the student's real ids are of its head, and what is not finite
    wide = torch.randn(3, 400, generator=generator)
    assert torch.equal(kernels.scan(wide[:, :200]).maxima, kernels.scan(wide[:, :200].clone()).maxima)
    wide[0, 7], wide[1, 300], wide[2, :] = torch.nan, torch.inf, -torch.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter, about ∞ − ∞
        found = kernels.scan(wide)
    assert found.maxima[0].isnan().tolist() == [True] + 6 * [False]
    assert found.maxima[1, 4] == torch.inf
    assert not found.log_sum_exp.isfinite().any()
    masked = torch.full((1, 8192), -torch.inf)
    masked[0, 5000] = 2.0
    assert kernels.scan(masked).log_sum_exp.tolist() == [2.0]  # a strip without any logit

    x = inputs(tokens=9, rows=1500, teacher_rows=1450, dtype=torch.float32)
    method = SwitchKD(window=4)  # two-stage selection
    ours, plain = (
        fused(method, x, replace(method.chunk_loss(), kernels=name), vocabulary=1400, chunk=4) for name in NAMES
    )
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-6, atol=0)
    assert {name: float(value) for name, value in ours.statistics.items()} == {
        name: float(value) for name, value in plain.statistics.items()
    }
    for mine, other in zip(gradients(ours.loss, x), gradients(plain.loss, x), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    for refused, error in ((wide.double(), TypeError), (wide.T, TypeError)):
        with pytest.raises(error, match='kernels="torch"'):
            kernels.scan(refused)


def compile_for_a_gpu():
    """The kernels compile to machine code of an H100 or H200, without one."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from switchkd.losses import kernels

    def machine_code(kernel, constants, **types):
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=triton.jit(kernel), signature=signature, constexprs=constants)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Triton's own defaults
            return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

    sizes = dict.fromkeys(("rows", "blocks", "strips"), "i32")
    found = dict.fromkeys(("maxima", "largest", "total"), "*fp32")
    assert machine_code(kernels._scan, {"BLOCK": BLOCK, "BLOCKS": 64}, z="*fp32", stride="i64", **sizes, **found)
    sums = {"log_sum_exp": "*fp32", "targets": "*i64"}
    assert machine_code(kernels._softmax_gradient, {"WIDTH": 4096}, z="*fp32", stride="i64", rows="i32", **sums)


def without_triton():
    """The losses work, and the kernels say what is missing."""
    x = inputs(dtype=torch.float32)
    method = SwitchKD(window=8)
    with pytest.raises(ImportError, match="pip install triton"):
        fused(method, x, replace(method.chunk_loss(), kernels="triton"))
    assert fused(method, x, method.chunk_loss()).loss.isfinite()


NAMES = ("triton", "torch")

if __name__ == "__main__":
    {case.__name__: case for case in (interpret, compile_for_a_gpu, without_triton)}[sys.argv[1]]()
    print("done")
