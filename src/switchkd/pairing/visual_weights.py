"""How much a teacher's opinion of each answer token depends on what it sees, and what the token weighs for it."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from switchkd.batch import Inputs
from switchkd.models import Pathway
from switchkd.names import VisualWeights
from switchkd.signals import Compared

#: Answers whose logits stand in memory at a time.
_ROWS = 256


def without_detail(teacher: Pathway, inputs: Inputs, detail: float) -> Float[Tensor, "answers hidden"]:
    """What the teacher says where its pictures have lost their detail, and nothing else has changed."""
    media = {kind: teacher.family.coarse(one, detail) for kind, one in inputs.media.items()}
    blurred = inputs._replace(media=media)
    return teacher.say(teacher.see(blurred), blurred)


@torch.no_grad()
def weighed(
    compared: Compared,
    blurred: Compared,
    sample: Int[Tensor, " answers"],
    shows: Bool[Tensor, " samples"],
    settings: VisualWeights,
) -> Compared:
    """`compared` with the weights of its answers and their visual advantage, first words among them.

    Args:
        compared: what the teacher says of the pictures.
        blurred: what it says of the pictures without detail, at the same answers.
        sample: whose each of the student's answers is.
        shows: which samples have a picture at all. The tokens of the others weigh 1.
        settings: of the weights.
    """
    parts = [(compared, blurred)]
    if compared.first_words is not None:
        assert blurred.first_words is not None
        parts.append((compared.first_words, blurred.first_words))
    advantages = [_advantage(*part) for part in parts]
    whose = torch.cat([sample if one.answers is None else sample[one.answers] for one, _ in parts])
    weights = visual_weights(torch.cat(advantages), whose, shows, share=settings.share, high=settings.high)
    own = weights.split([len(one) for one in advantages])
    first = compared.first_words
    if first is not None:
        first = replace(first, weights=own[1], advantage=advantages[1])
    return replace(compared, weights=own[0], advantage=advantages[0], first_words=first)


def visual_weights(
    advantage: Float[Tensor, " compared"],
    sample: Int[Tensor, " compared"],
    shows: Bool[Tensor, " samples"],
    *,
    share: float,
    high: float,
) -> Float[Tensor, " compared"]:
    """w = λ·n/|H| for tokens of H, (1 − λ)·n/|L| for those of L: Σ w·KL / n = λ·mean_H KL + (1 − λ)·mean_L KL (VA-OPD, eq. 5).

    H are, of a row's n compared answer tokens, the ⌈p·n⌉ of the greatest visual advantage, as far as it is above 0; of equal ones the
    earlier; L are the others. A row's weights have the mean 1, so that the loss is as large as without them. Where one of the two groups
    is empty, and in a row without a picture, every token weighs 1.

    Args:
        advantage: a, in nats, not negative.
        sample: whose each token is.
        shows: which samples have a picture.
        share: p.
        high: λ.

    Returns:
        Without a unit, float32 or wider. No shape depends on a value.
    """
    count = torch.zeros(len(shows), dtype=torch.float64, device=sample.device)
    n = count.index_add(0, sample, torch.ones_like(sample, dtype=torch.float64))
    by_advantage = advantage.argsort(descending=True, stable=True)
    order = by_advantage[sample[by_advantage].argsort(stable=True)]  # row by row, the greatest first
    begin = n.cumsum(0) - n
    rank = torch.empty_like(n[sample])
    rank[order] = torch.arange(len(sample), dtype=torch.float64, device=sample.device) - begin[sample[order]]
    most = (share * n - 1e-6).ceil()  # 0.2 · 15 may be a little more than 3
    in_high = (rank < most[sample]) & (advantage > 0)
    of_high = count.index_add(0, sample, in_high.double())
    both = shows & (of_high > 0) & (of_high < n)
    weight_high = torch.where(both, high * n / of_high.clamp(min=1), 1.0)
    weight_low = torch.where(both, (1 - high) * n / (n - of_high).clamp(min=1), 1.0)
    return torch.where(in_high, weight_high[sample], weight_low[sample]).to(advantage.dtype)


def _advantage(compared: Compared, blurred: Compared) -> Float[Tensor, " compared"]:
    """max(0, log p_T(y | pictures) − log p_T(y | without detail)); 0 for a token that is not among the ids that are compared."""
    difference = _log_likelihood(compared) - _log_likelihood(blurred)
    among = (compared.targets >= 0) & (compared.targets < compared.vocabulary)
    return torch.where(among, difference.clamp(min=0), 0)


def _log_likelihood(one: Compared) -> Float[Tensor, " compared"]:
    """Of each answer token, over the ids that are compared."""
    found = []
    for begin in range(0, max(len(one.targets), 1), _ROWS):
        part = slice(begin, begin + _ROWS)
        logits, targets = one.teacher.rows(part), one.targets[part].clamp(0, one.vocabulary - 1)
        found.append(logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1))
    return torch.cat(found)


def shows_something(teacher: Pathway, inputs: Inputs) -> Bool[Tensor, " samples"]:
    """Which samples have a visual token."""
    samples = inputs.samples()
    visual = teacher.family.is_visual(inputs.tokens) & (samples >= 0)
    count = torch.zeros(len(inputs.lengths), device=samples.device)
    return count.index_add(0, samples.clamp(min=0).flatten(), visual.flatten().to(count.dtype)) > 0
