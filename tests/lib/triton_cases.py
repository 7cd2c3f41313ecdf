"""Run in processes of their own by losses/test_kernels.py: Triton decides when it is imported whether it interprets."""

import sys
import warnings
from dataclasses import replace

import pytest
import torch
from fused_cases import fused, gradients, inputs, signals
from torch.utils._python_dispatch import TorchDispatchMode

from switchkd.losses import fused_loss, kernels, kernels_check
from switchkd.losses.knee import BLOCK, knee_rank, leader_order
from switchkd.losses.pairs import pair_reverse_kl
from switchkd.methods import SwitchKD

#: Launches of a chunk that the loss may take, three pathways together.
BUDGET = 40
#: Of bf16, relative to a value: the interpreter cuts digits off where a GPU rounds to the nearest.
ONE_STEP = 2**-7


def draw(*shape, seed=0, scale=8.0):
    """With ties, as logits in bf16 have them."""
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).round(decimals=1)


def is_chosen():
    """The small case that decides whether a machine's kernels are used goes through all of them."""
    assert kernels.why_not(torch.device("cpu")) is None


def scans_and_softmax():
    """One block, several strips, an incomplete block at the end of a strip and within one, no token at all."""
    for tokens, rows in ((2, 64), (3, 9000), (1, 4097), (2, 130), (0, 70)):
        logits = draw(tokens, rows)
        targets = torch.randint(rows, (tokens,), generator=torch.Generator().manual_seed(1))
        found = kernels.scan(logits)
        padded = torch.nn.functional.pad(logits, (0, -rows % BLOCK), value=-torch.inf)
        assert torch.equal(found.maxima, padded.unflatten(1, (-1, BLOCK)).amax(dim=-1))
        ce, log_sum_exp = kernels.cross_entropy(logits, found, targets)
        exact = logits.double().logsumexp(dim=-1)
        torch.testing.assert_close(log_sum_exp.double(), exact, rtol=1e-6, atol=0)
        torch.testing.assert_close(
            ce, exact - logits.double().gather(1, targets[:, None]).squeeze(1), rtol=1e-5, atol=1e-5
        )
        expected = logits.double().softmax(dim=-1)
        expected[torch.arange(tokens), targets] -= 1
        half = kernels.softmax_gradient(logits, log_sum_exp, targets, torch.bfloat16)
        assert half.dtype == torch.bfloat16
        overwritten = logits.clone()
        assert kernels.softmax_gradient(overwritten, log_sum_exp, targets, torch.float32) is overwritten
        torch.testing.assert_close(overwritten.double(), expected, rtol=1e-5, atol=1e-7)
        assert ((half.double() - overwritten).abs() <= ONE_STEP * overwritten.abs() + 1e-30).all()
    wide = draw(3, 400)
    assert torch.equal(kernels.scan(wide[:, :200]).maxima, kernels.scan(wide[:, :200].clone()).maxima)
    cut = kernels.scan(wide, 200)  # what is compared are the first columns, the sum is over all
    assert torch.equal(cut.maxima, kernels.scan(wide[:, :200]).maxima)
    assert torch.equal(cut.total, kernels.scan(wide).total)
    with pytest.raises(ValueError, match="rows must lie in memory as they are"):
        kernels.scan(wide.T)


def chooses_as_torch():
    """Ties at the edge of the window, in one block and in many; windows of any size; NaN, −0 and infinities."""
    odd = draw(6, 9000, seed=2)
    odd[0, 7] = odd[0, 8999] = torch.nan
    odd[1, 300], odd[1, 2], odd[2, :8000] = torch.inf, -torch.inf, -torch.inf
    odd[3], odd[4] = 0.0, -0.0
    odd[4, ::2], odd[5] = 0.0, -torch.inf
    cases = [(odd, (2, 8, 100)), (draw(4, 5000, seed=3), (3, 12, 128, 256)), (draw(2, 300, seed=4), (2, 63, 256, 300))]
    cases += [(draw(3, 4097, seed=5, scale=0.3), (64,)), (draw(2, 70, seed=6), (70,)), (draw(0, 500), (8,))]
    for logits, windows in cases:
        for window in windows:
            found = kernels.select(logits, kernels.scan(logits), window)
            # a stable sort keeps −0 behind 0 no less than torch's own order does: they are equal
            assert torch.equal(found, leader_order(logits, window)), (list(logits.shape), window)
    wide = draw(3, 700, seed=7)
    wide[:, 400:] += 50  # of other ids than those compared: they must not win in the block that both share
    found = kernels.select(wide[:, :400], kernels.scan(wide, 400), 6)
    assert torch.equal(found, leader_order(wide[:, :400], 6))


def compares_as_torch():
    """Divergences and gradients of `pair_reverse_kl`, knees of `knee_rank`, for odd curves too."""
    learner, teacher = draw(7, 900, seed=1, scale=3.0), draw(7, 900, seed=2, scale=3.0)
    learner[0], teacher[1], learner[2] = 1.0, 2.0, teacher[2]  # flat, flat, equal
    learner[3] *= 1e3
    teacher[4] -= 1e4
    for window, min_k, temperature, t_squared in (
        (16, 3, 3.0, False),
        (13, None, 1.7, True),
        (2, 5, 1.0, False),
        (130, 4, 0.7, True),
    ):
        ids, teacher_ids = (leader_order(z, window) for z in (learner, teacher))
        found = kernels.compare(
            learner, teacher, ids, teacher_ids, weight=0.5, temperature=temperature, min_k=min_k, t_squared=t_squared
        )
        total, scale = torch.zeros(7, dtype=torch.float64), 0.5 * (temperature**2 if t_squared else 1)
        for place, (chosen, leader) in enumerate(((teacher_ids, teacher), (ids, learner))):
            k = torch.full((7,), window) if min_k is None else knee_rank(leader.gather(1, chosen), min_k)
            assert found.sums[2 - place].tolist() == k.tolist()
            a, b = (z.gather(1, chosen).double() / temperature for z in (learner, teacher))
            divergence, slope = pair_reverse_kl(a, b, k)
            total += scale * divergence
            mine = slice(place * window, (place + 1) * window)
            assert torch.equal(found.ids[:, mine], chosen)
            torch.testing.assert_close(
                found.gradient[:, mine].double(), scale * slope / temperature, rtol=1e-6, atol=1e-7
            )
        torch.testing.assert_close(found.sums[0], total, rtol=1e-6, atol=1e-9)
    for broken in (torch.nan, torch.inf):
        z = teacher.clone()
        z[0, 5] = broken
        ids = leader_order(z, 8)
        found = kernels.compare(
            learner, z, leader_order(learner, 8), ids, weight=1.0, temperature=1.0, min_k=3, t_squared=False
        )
        assert found.sums[0].isfinite().tolist() == [False] + 6 * [True]


def adds_and_gathers():
    """What two leaders say of one id adds up, is rounded once, and reaches the switch's hidden states through few rows of the head."""
    logits, targets = draw(4, 500, seed=3, scale=2.0), torch.tensor([0, 5, 499, 7])
    other = draw(4, 400, seed=4, scale=2.0)
    ids, teacher_ids = (leader_order(z[:, :400], 9) for z in (logits, other))
    targets[1] = ids[1, 0]
    found = kernels.compare(
        logits[:, :400], other, ids, teacher_ids, weight=3.0, temperature=1.0, min_k=4, t_squared=False
    )
    assert (found.ids[:, :9, None] == found.ids[:, None, 9:]).any()
    _, log_sum_exp = kernels.cross_entropy(logits, kernels.scan(logits), targets)
    exact = logits.double().softmax(dim=-1)
    exact[torch.arange(4), targets] -= 1
    sparse = torch.zeros(4, 500, dtype=torch.float64).scatter_add_(1, found.ids, found.gradient.double())
    for dtype, most in ((torch.float32, 1e-6), (torch.bfloat16, ONE_STEP)):
        z = logits.clone()
        gradient = kernels.softmax_gradient(z, log_sum_exp, targets, dtype)
        kernels.add_sparse_(gradient, z, log_sum_exp, targets, found)
        assert ((gradient.double() - exact - sparse).abs() <= most * (exact + sparse).abs() + 1e-7).all()
    for table in (draw(500, 40, seed=5), draw(500, 700, seed=6).bfloat16()):
        torch.testing.assert_close(
            kernels.weighted_rows(found.ids, found.gradient, table).double(),
            sparse @ table.double(),
            rtol=1e-5,
            atol=1e-5,
        )
    poisoned = draw(500, 8)
    unused = torch.ones(500, dtype=torch.bool)
    unused[found.ids[found.gradient != 0]] = False
    poisoned[unused] = torch.nan
    assert kernels.weighted_rows(found.ids, found.gradient, poisoned).isfinite().all()


def the_fused_loss():
    """By kernels and by torch: values, statistics and gradients; ids and answers of their own; every option of the method."""
    options = [SwitchKD(window=4), SwitchKD(window=4, switch=0), SwitchKD(window=4, align=0)]
    options += [SwitchKD(top_k=5, t_squared=True, temperature=1.7, align=0.3)]
    shared = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:280]
    for method in options:
        for given in ({"vocabulary": 290}, {"answers": torch.tensor([0, 2, 3, 6, 8])}, {"ids": shared}):
            x = inputs(tokens=9, rows=340, teacher_rows=300, dtype=torch.float32)
            ours, plain = (
                fused_loss(replace(method.chunk_loss(), kernels=name), signals(method, x, **given), chunk=4)
                for name in ("triton", "torch")
            )
            torch.testing.assert_close(ours.loss, plain.loss, rtol=2e-6, atol=0)
            assert ours.statistics.keys() == plain.statistics.keys()
            assert all(float(ours.statistics[name]) == float(value) for name, value in plain.statistics.items())
            for mine, other in zip(gradients(ours.loss, x), gradients(plain.loss, x), strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def what_falls_back():
    """Settings and logits that no kernel knows are torch's, or an error where kernels were asked for by name."""
    x, wide = (inputs(tokens=5, rows=400, teacher_rows=390, dtype=dtype) for dtype in (torch.float32, torch.float64))
    cases = [
        (SwitchKD(direction="forward"), x, "know direction reverse"),
        (SwitchKD(softmax="row"), x, "softmax all, not"),
    ]
    cases += [(SwitchKD(window=None), x, "window of None"), (SwitchKD(window=257), x, "up to 256 ids")]
    cases += [
        (SwitchKD(top_k=300), x, "window of 300 over 380 ids"),
        (SwitchKD(window=8), wide, "these logits are torch.float64"),
    ]
    for method, given, words in cases:
        with pytest.raises(ValueError, match=words):
            fused(method, given, replace(method.chunk_loss(), kernels="triton"), vocabulary=380)
        auto, plain = (
            fused(method, given, replace(method.chunk_loss(), kernels=name), vocabulary=380).loss
            for name in ("auto", "torch")
        )
        assert torch.equal(auto, plain)
    # a machine whose kernels compute something else is found out, and torch computes
    assert kernels.why_not(torch.device("cpu")) is None
    plain_select = kernels.select
    kernels.select = lambda logits, scanned, window: plain_select(logits, scanned, window).flip(1)
    assert kernels_check.check_kernels(torch.device("cpu")) == "they choose other ids than torch in a small case"
    kernels.select = plain_select
    plain_rows = kernels.weighted_rows
    kernels.weighted_rows = lambda ids, values, table: 1.001 * plain_rows(ids, values, table)
    kernels._what_fails.cache_clear()
    with pytest.raises(ValueError, match="hidden states differs by"):
        fused(SwitchKD(window=8), x, replace(SwitchKD(window=8).chunk_loss(), kernels="triton"))
    kernels.weighted_rows = plain_rows
    kernels._what_fails.cache_clear()


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU: kernels of ours, and operators of torch that are no views."""

    def __init__(self):
        super().__init__()
        self.torch, self.ours = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        makes_nothing = (
            "empty",
            "view",
            "slice",
            "select",
            "unbind",
            "split",
            "detach",
            "transpose",
            "t.default",
            "alias",
            "expand",
        )
        self.torch += not any(name in str(function) for name in makes_nothing)
        return result


def launches_of_a_chunk():
    """Three pathways in one chunk, from hidden states to gradients: at most the budget, whatever the tokens."""
    plain = {}
    for name, kernel in vars(kernels._kernels()).items():
        if hasattr(kernel, "run") and not name.startswith("_"):
            plain[name] = kernel

    def counted(count):
        class Counted:
            def __init__(self, kernel):
                self.kernel = kernel

            def __getitem__(self, grid):
                def launch(*arguments, **settings):
                    count.ours += 1
                    before = count.torch
                    self.kernel[grid](*arguments, **settings)
                    count.torch = before  # the interpreter computes with torch

                return launch

        return Counted

    method = SwitchKD(window=8)
    counts = []
    for tokens in (1, 2):  # in one chunk and in two: the difference is a chunk
        x = inputs(tokens=tokens, rows=700, teacher_rows=690, dtype=torch.float32, bias=False)
        with Launches() as count:
            for name, kernel in plain.items():
                setattr(kernels._kernels(), name, counted(count)(kernel))
            sums = fused_loss(replace(method.chunk_loss(), kernels="triton"), signals(method, x, 680), chunk=1)
        for name, kernel in plain.items():
            setattr(kernels._kernels(), name, kernel)
        assert sums.loss.isfinite()
        counts.append((count.torch, count.ours))
    (one, ours), (two, twice) = counts
    assert ours == 12, (
        "three scans, three selections, two comparisons, cross-entropy, gradient, what is added, rows gathered"
    )
    assert twice == 2 * ours
    launches = two - one + ours
    assert launches <= BUDGET, launches
    print(launches, file=sys.stderr)


def interpret(*cases):
    """Some of them, one after the other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the interpreter, about log 0 and ∞ − ∞
        for case in cases:
            case()


def quick():
    """What fits into every run of the tests."""
    interpret(is_chosen, scans_and_softmax, adds_and_gathers, launches_of_a_chunk)


def whole():
    """The rest."""
    interpret(chooses_as_torch, compares_as_torch, the_fused_loss, what_falls_back)


def compile_for_a_gpu():
    """The kernels compile to machine code of an H100 or H200, without one, for the sizes of real vocabularies."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from switchkd.losses import triton_kernels

    def machine_code(kernel, constants, warps=4, **types):
        signature = types | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Triton's own defaults
            return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["cubin"]

    floats, wide, whole, half = "*fp32", "*fp64", "*i64", "*bf16"
    row = {"z": floats, "stride": "i64"}
    sums = dict.fromkeys(("maxima", "largest", "total"), floats)
    counts = dict.fromkeys(("rows", "columns", "blocks", "strips"), "i32")
    assert machine_code(triton_kernels.scan, {"BLOCK": BLOCK, "BLOCKS": 64}, **row, **counts, **sums)
    for window, blocks in ((128, 4096), (256, 4096), (32, 1024)):
        sizes = {"WINDOW": window, "WIDTH": window, "BLOCK": BLOCK, "BLOCKS": blocks}
        names = {"columns": "i32", "maxima": floats, "blocks": "i32", "scratch": "*i32", "ids": whole}
        assert machine_code(triton_kernels.select, sizes, warps=8, **row, **names)
        both = {"learner": floats, "learner_stride": "i64", "teacher": floats, "teacher_stride": "i64"}
        names = both | {"learner_ids": whole, "teacher_ids": whole, "weight": "fp32", "min_k": "i32", "loss": wide}
        names |= {"learner_k": wide, "teacher_k": wide, "ids": whole, "gradient": floats}
        for fixed in (False, True):
            sizes = {"WINDOW": window, "WIDTH": window, "TEMPERATURE": 1.7, "SCALE": 1.0, "FIXED": fixed}
            assert machine_code(triton_kernels.compare, sizes, **names)
        target = {"log_sum_exp": floats, "targets": whole, "ids": whole, "gradient": floats}
        for in_place, out in ((True, floats), (False, half)):
            sizes = {"IN_PLACE": in_place, "HALF": window, "WIDTH": window}
            assert machine_code(triton_kernels.add_sparse, sizes, **row, **target, out=out, out_stride="i64")
    names = {"targets": whole, "strips": "i32", "largest": floats, "total": floats, "log_sum_exp": floats, "loss": wide}
    assert machine_code(triton_kernels.cross_entropy, {"STRIPS": 64}, **row, **names)
    names = {"rows": "i32", "log_sum_exp": floats, "targets": whole, "out_stride": "i64"}
    for out in (floats, half):
        assert machine_code(triton_kernels.softmax_gradient, {"WIDTH": 4096}, **row, **names, out=out)
        names_of = {
            "ids": whole,
            "values": floats,
            "count": "i32",
            "table": out,
            "table_stride": "i64",
            "columns": "i32",
        }
        assert machine_code(triton_kernels.weighted_rows, {"WIDTH": 512}, **names_of, out=floats)


def without_triton():
    """The losses work, and the kernels say what is missing."""
    x = inputs(dtype=torch.float32)
    method = SwitchKD(window=8)
    with pytest.raises(ValueError, match="Triton is not installed: pip install triton"):
        fused(method, x, replace(method.chunk_loss(), kernels="triton"))
    assert fused(method, x, method.chunk_loss()).loss.isfinite()


if __name__ == "__main__":
    {case.__name__: case for case in (quick, whole, compile_for_a_gpu, without_triton)}[sys.argv[1]]()
    print("done")
