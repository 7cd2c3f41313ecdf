"""What of its features matters to what a teacher says: the diagonal of their Fisher information, channel by channel."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from switchkd.batch import Inputs
from switchkd.models.pathway import Pathway
from switchkd.signals import Head

#: Answers whose logits stand in memory at a time.
_ROWS = 256


def feature_fisher(teacher: Pathway, batches: Iterable[Inputs], *, seed: int = 0) -> Float[Tensor, " width"]:
    """F_c = mean over visual tokens i of E_y[(∂/∂v_ic Σ_a log p_T(y_a | v, t))²], v = V_T(x), y_a ~ p_T(· | v, t) at every answer a.

    Where V_S is near V_T the switch is a quadratic form: KL(p_T(v) ‖ p_T(v + δ)) = ½ δᵀFδ + O(δ³), F the Fisher information of what the
    teacher says. So F_c is what the switch's own curvature says about channel c, all tokens taken together. One y is drawn for each answer
    (not the data's, which give another matrix: Kunstner et al., arXiv 1905.12558), by `seed`, so that the same rows give the same numbers.
    In squared nats per squared unit of V_T(x); float64, on the CPU.

    Args:
        teacher: frozen and in eval mode.
        batches: what it reads.
        seed: of what is drawn.

    Raises:
        ValueError: without any image.
    """
    generator = torch.Generator().manual_seed(seed)
    squares, tokens = torch.zeros(teacher.family.geometry.feature_width, dtype=torch.float64), 0
    for inputs in batches:
        with torch.no_grad():
            seen = teacher.see(inputs)
        if seen is None:
            continue
        features = seen.detach().requires_grad_()
        with torch.enable_grad():
            hidden = teacher.say(features, inputs)
        drawn = torch.rand(len(hidden), generator=generator).to(hidden.device)
        parts = zip(hidden.detach().split(_ROWS), drawn.split(_ROWS), strict=True)
        (gradient,) = torch.autograd.grad(hidden, features, torch.cat([_score(teacher.head, *part) for part in parts]))
        squares += gradient.flatten(0, -2).double().square().sum(dim=0).cpu()
        tokens += gradient.shape[:-1].numel()
    if not tokens:
        raise ValueError("there is no image to measure the features' weights on: the first rows of the data have none")
    return squares / tokens


def _score(head: Head, hidden: Float[Tensor, "n hidden"], drawn: Float[Tensor, " n"]) -> Float[Tensor, "n hidden"]:
    """∂/∂h log p(y | h), y drawn from p by numbers from 0 to 1."""
    hidden = hidden.requires_grad_()
    with torch.enable_grad():
        log_p = head.logits(hidden).log_softmax(dim=-1)
    below = log_p.detach().exp().cumsum(dim=-1)
    chosen: Int[Tensor, "n 1"] = torch.searchsorted(below, drawn[:, None] * below[:, -1:])
    chosen = chosen.clamp(max=below.shape[1] - 1)
    (gradient,) = torch.autograd.grad(log_p.gather(1, chosen).sum(), hidden)
    return gradient
