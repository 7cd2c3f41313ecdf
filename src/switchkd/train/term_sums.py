"""Sums of the loss's terms over batches and processes, and their means per answer token."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from switchkd.agree import in_every_process
from switchkd.losses import SummedLoss

#: Term or statistic → its sum, and the number of tokens that it is a sum over, in float64.
TermSums = dict[str, Tensor]


def add_terms(total: TermSums, sums: SummedLoss, *, own_inputs: bool, loss: bool = False) -> None:
    """Add those of one batch: terms count for every answer token, statistics for those that are compared.

    Args:
        total: is added to.
        sums: of the batch.
        own_inputs: whether a teacher has inputs of its own: then it has a share of the answers, `aligned`.
        loss: add the whole loss as a term of its own, which the Trainer sums by itself in training.
    """
    answers = sums.answers
    # a teacher with inputs of its own may have none of the answers of a batch
    compared = sums.compared if own_inputs else sums.compared or answers
    counted = {name: (value, answers) for name, value in sums.terms.items()}
    counted |= {name: (value, compared) for name, value in sums.statistics.items()}
    if loss:
        counted["loss"] = (sums.loss.detach(), answers)
    if own_inputs:
        counted["aligned"] = (sums.loss.new_tensor(sums.compared), answers)
    counted["answer_tokens"] = (sums.loss.new_tensor(answers, dtype=torch.float64), 1)
    for name, (value, count) in counted.items():
        entry = torch.stack([value.double(), value.new_full((), count, dtype=torch.float64)])
        total[name] = total.get(name, 0) + entry


def of_all(total: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Those of all processes together, every one of which must call this.

    Names may differ: a process whose rows have other teachers than those of another knows other statistics.
    """
    names = sorted({name for known in in_every_process(lambda: list(total)) for name in known})
    none = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    sums = accelerator.reduce(torch.stack([total.get(name, none) for name in names] or [none]), reduction="sum")
    return dict(zip(names, sums, strict=bool(names)))


def means(total: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, float]:
    """Over the tokens of all processes, every one of which must call this; `answer_tokens` is their number."""
    sums = of_all(total, accelerator)
    averages = {name: (value / tokens.clamp(min=1)).item() for name, (value, tokens) in sums.items()}
    return averages | {"answer_tokens": sums["answer_tokens"][0].item()}
