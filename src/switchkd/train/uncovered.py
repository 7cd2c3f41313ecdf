"""What a cache of the largest logits does not know: the student's probability on ids that are not kept."""

import torch
from jaxtyping import Float
from torch import Tensor

from switchkd.signals import FromTopLogits, Signals

#: Answers whose logits stand in memory at a time.
_ROWS = 256


@torch.no_grad()
def uncovered_mass(signals: Signals) -> Float[Tensor, " compared"] | None:
    """At every answer that is compared, the student's probability on ids whose logits the cache does not keep; None without such a cache.

    There the student is held against an even share of what the teacher leaves for all of them. A product with the student's whole head.
    """
    masses = []
    for part in signals.parts():
        student = part.student
        for one in part.compared.values():
            if not isinstance(one.teacher, FromTopLogits):
                return None
            hidden = student.hidden if one.answers is None else student.hidden[one.answers]
            columns = one.teacher.stored.columns.long()
            for some, kept in zip(hidden.split(_ROWS), columns.split(_ROWS), strict=True):
                logits = student.head.logits(some)
                compared = logits[:, : one.vocabulary] if one.ids is None else logits[:, one.ids]
                masses.append(compared.softmax(dim=-1).scatter(1, kept, 0.0).sum(dim=-1))
    return torch.cat(masses) if masses else None
