"""The distillation step: from a batch to the summed loss. The one module that the trainer, DDP, FSDP and the memory estimate see."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from switchkd.batch import Batch, sample_id
from switchkd.losses import AutogradTerms, SummedLoss, fused_loss, plain_loss, with_samples
from switchkd.methods import Method
from switchkd.models.masking import MagnitudeMask, masked_share
from switchkd.pairing import Pair
from switchkd.signals import Logits, Signals
from switchkd.train.uncovered import uncovered_mass

#: Answers whose logits stand in memory at a time while a fault is looked for.
_ROWS = 256


class DistillationStep(nn.Module):
    """Signals of the pair → terms of the method → their sum over the answer tokens of a batch.

    Args:
        pair: student, frozen teacher, and what learns with them.
        method: whose terms are summed.
        loss: `fused` makes the logits of some answer tokens at a time; `plain` of all at once, for debugging.
        mask: masks weights of the teacher, `masked` of them at first and fewer from time to time.
        masked: this share.
    """

    # How transformers.Trainer is told that the loss shifts answers and divides by the answer tokens of the global batch itself
    loss_type = "ForCausalLM"
    accepts_loss_kwargs = True

    def __init__(
        self,
        pair: Pair,
        method: Method,
        *,
        loss: Literal["fused", "plain"] = "fused",
        mask: MagnitudeMask | None = None,
        masked: float = 0.0,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.method = method
        self.loss = loss
        self.mask = mask
        self.masked = masked

    def forward(
        self, batch: Batch, progress: float = 1.0, step: int | None = None, *, dropped_mass: bool = False
    ) -> SummedLoss:
        """The sum of all terms over the batch's answer tokens, in nats.

        Args:
            batch: what every model reads.
            progress: where in its stage the step is, above 0 and at most 1: weights may depend on it.
            step: its number in the stage, from 0; None: no step in particular (`Method.at`).
            dropped_mass: add to the statistics what the teacher says about ids that are not compared, and what the student says about
                ids whose logits a cache does not keep; products with whole heads.
        """
        method = self.method.at(progress, step)
        if self.mask is not None:
            self.mask.set(masked_share(self.masked, progress))
        signals = self.pair(batch, method.needs)
        if batch.written is not None:
            signals = replace(signals, labelled=~batch.written[signals.sample])
        sums = self._sum(method, signals)
        if dropped_mass and (mass := self.pair.dropped_mass(signals)) is not None:
            sums = sums._replace(statistics=sums.statistics | {"dropped_mass": mass.sum()})
        if dropped_mass and (mass := uncovered_mass(signals)) is not None:
            sums = sums._replace(statistics=sums.statistics | {"uncovered_mass": mass.sum()})
        return sums

    def _sum(self, method: Method, signals: Signals) -> SummedLoss:
        if self.loss == "plain":
            sums = plain_loss(AutogradTerms(method.token_terms, method.statistics), signals)
        else:
            sums = fused_loss(method.chunk_loss(), signals)
        if signals.activations:
            with torch.autocast(signals.sample.device.type, enabled=False):  # in the precision of what is compared
                terms = method.sample_terms(signals, self.pair.learned)
            sums = with_samples(sums, terms, signals)
        elif method.needs == self.pair.needs:
            return sums
        # where no sample has an image, or this step leaves a pathway out, what learns with the student has a gradient too, or DDP waits
        modules = [module for module in self.pair.auxiliary_modules.values() if module is not None]
        return sums._replace(loss=sums.loss + 0 * sum(p.sum() for module in modules for p in module.parameters()))

    def unmask(self) -> None:
        """Make the teacher whole again: the next stage may learn from it too."""
        if self.mask is not None:
            self.mask.set(0.0)

    @torch.no_grad()
    def not_finite(self, batch: Batch) -> dict[str, list[str]]:
        """Sample → the pathways whose logits at its answers are not finite: what explains a loss that is not."""
        signals = self.pair(batch)
        pathways: list[tuple[str, Logits | None, Tensor]] = [("student", signals.student, signals.sample)]
        for part in signals.parts():
            for name, one in part.compared.items():
                sample = part.sample if one.answers is None else part.sample[one.answers]
                pathways += [(name, one.teacher, sample), ("switch", one.switch, sample)]
        blamed: dict[str, list[str]] = {}
        for pathway, logits, sample in pathways:
            if logits is None:
                continue
            for start in range(0, len(logits), _ROWS):
                part = slice(start, start + _ROWS)
                finite = torch.isfinite(logits.rows(part)).all(dim=1)
                for number in sample[part][~finite].unique().tolist():
                    blamed.setdefault(sample_id(batch.keys[number]), []).append(pathway)
        return {name: list(dict.fromkeys(pathways)) for name, pathways in blamed.items()}
