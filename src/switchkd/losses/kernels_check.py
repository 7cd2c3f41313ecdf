"""Whether the kernels of this machine compute what torch does: a small case, once a process, before any loss is left to them."""

import torch
from torch import Tensor

from switchkd.losses import kernels
from switchkd.losses.knee import knee_rank, leader_order
from switchkd.losses.pairs import pair_reverse_kl

_ROWS, _COLUMNS, _COMPARED, _WINDOW, _TEMPERATURE = 3, 4500, 4400, 12, 1.7


def check_kernels(device: torch.device) -> str | None:
    """What differs from torch, and by how much; None where all agrees. Raises what a compiler or a driver raises."""
    generator = torch.Generator().manual_seed(0)
    z, t = (  # with ties, and some blocks that are not whole
        (2 * torch.randn(_ROWS, _COLUMNS, generator=generator)).round(decimals=2).to(device) for _ in range(2)
    )
    targets = torch.arange(_ROWS, device=device)
    student, teacher = z[:, :_COMPARED], t[:, :_COMPARED]
    scanned = kernels.scan(z, _COMPARED)
    ids, teacher_ids = (
        kernels.select(x, s, _WINDOW) for x, s in ((student, scanned), (teacher, kernels.scan(teacher)))
    )
    for chosen, x in ((ids, student), (teacher_ids, teacher)):
        if not torch.equal(chosen, leader_order(x, _WINDOW)):
            return "they choose other ids than torch in a small case"
    found = kernels.compare(
        student, teacher, ids, teacher_ids, weight=0.5, temperature=_TEMPERATURE, min_k=3, t_squared=False
    )
    loss, ce_gradient = torch.zeros(_ROWS, dtype=torch.float64, device=device), z.double().softmax(dim=-1)
    ce_gradient[torch.arange(_ROWS, device=device), targets] -= 1
    gradient, sparse = ce_gradient.clone(), torch.zeros_like(ce_gradient)
    for chosen, leader in ((teacher_ids, teacher), (ids, student)):
        k = knee_rank(leader.gather(1, chosen), 3)
        a, b = (x.gather(1, chosen).double() / _TEMPERATURE for x in (student, teacher))
        divergence, slope = pair_reverse_kl(a, b, k)
        loss += 0.5 * divergence
        sparse.scatter_add_(1, chosen, 0.5 * slope / _TEMPERATURE)
    ce, log_sum_exp = kernels.cross_entropy(z, scanned, targets)
    written = kernels.softmax_gradient(z, log_sum_exp, targets, torch.bfloat16)
    kernels.add_sparse_(written, z, log_sum_exp, targets, found)
    table = torch.randn(_COLUMNS, 40, generator=generator).to(device)
    gathered = kernels.weighted_rows(found.ids, found.gradient, table)
    exact = z.double().logsumexp(dim=-1) - z.double().gather(1, targets[:, None]).squeeze(1)
    return (
        _apart("the divergence", found.sums[0], loss, 1e-9)
        or _apart("the cross-entropy", ce, exact, 1e-5)
        or _apart("the gradient of the student's logits", written, gradient + sparse, 2**-8)
        or _apart("the gradient of the switch's hidden states", gathered, sparse @ table.double(), 1e-5)
    )


def _apart(what: str, found: Tensor, expected: Tensor, most: float) -> str | None:
    difference = float((found.double() - expected).abs().max() / expected.abs().max())
    return None if difference <= most else f"{what} differs by {difference:.1e} of its greatest value in a small case"
