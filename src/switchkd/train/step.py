"""The distillation step: from a batch to the summed loss. The one module that the trainer, DDP, FSDP and the memory estimate see."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from switchkd.batch import TEACHER, AnyBatch, Batch, sample_id
from switchkd.losses import AutogradTerms, SummedLoss, added, fused_loss, plain_loss, with_samples
from switchkd.methods import Method
from switchkd.models.masking import MagnitudeMask
from switchkd.pairing import Pair
from switchkd.signals import Logits, Signals
from switchkd.train.uncovered import uncovered_mass

#: Answers whose logits stand in memory at a time while a fault is looked for.
_ROWS = 256


class DistillationStep(nn.Module):
    """Signals of the pair → terms of the method → their sum over the answer tokens of a batch.

    Args:
        pair: student, frozen teacher, and what learns with them; or several of these with one student, by the tags of their teachers, of
            which each takes its part of a `TaggedBatch`.
        method: whose terms are summed.
        loss: `fused` makes the logits of some answer tokens at a time; `plain` of all at once, for debugging.
        masks: of teachers whose smallest weights come back along the stage.
    """

    # How transformers.Trainer is told that the loss shifts answers and divides by the answer tokens of the global batch itself
    loss_type = "ForCausalLM"
    accepts_loss_kwargs = True

    def __init__(
        self,
        pair: Pair | Mapping[str, Pair],
        method: Method,
        *,
        loss: Literal["fused", "plain"] = "fused",
        masks: Sequence[MagnitudeMask] = (),
    ) -> None:
        super().__init__()
        pairs = {TEACHER: pair} if isinstance(pair, Pair) else dict(pair)
        self._tags = tuple(pairs)
        self.is_tagged = not isinstance(pair, Pair)
        #: The first one, to which the student belongs, and the others.
        self.pair = pairs[self._tags[0]]
        self.others = nn.ModuleList(pairs[tag].share_student() for tag in self._tags[1:])
        self.method = method
        self.loss = loss
        self.masks = tuple(masks)

    @property
    def pairs(self) -> dict[str, Pair]:
        """By the tags of their teachers; `batch.TEACHER` where there is one pair for all rows."""
        pairs: list[Any] = [self.pair, *self.others]
        return dict(zip(self._tags, pairs, strict=True))

    @property
    def auxiliary_modules(self) -> dict[str, nn.Module | None]:
        """What learns with the student, by its name in its pair; of several pairs with the tag behind it, as `bridge.ocr`."""
        if not self.is_tagged:
            return self.pair.auxiliary_modules
        return {
            f"{name}.{tag}": module
            for tag, pair in self.pairs.items()
            for name, module in pair.auxiliary_modules.items()
        }

    def visual_parameters(self) -> Iterator[nn.Parameter]:
        """All that learns from pictures alone: the student's vision encoder and projector, and bridges."""
        for part in ("vision", "projector"):
            yield from self.pair.student.part_parameters(part).values()
        for pair in self.pairs.values():
            yield from [] if pair.bridge is None else pair.bridge.parameters()

    def forward(
        self, batch: AnyBatch, progress: float = 1.0, step: int | None = None, *, dropped_mass: bool = False
    ) -> SummedLoss:
        """The sum of all terms over the batch's answer tokens, in nats.

        Args:
            batch: what every model reads.
            progress: where in its stage the step is, above 0 and at most 1: weights may depend on it.
            step: its number in the stage, from 0; None: no step in particular (`Method.at`).
            dropped_mass: add to the statistics what the teacher says about ids that are not compared, and what the student says about
                ids whose logits a cache does not keep; products with whole heads.
        """
        method, pairs = self.method.at(progress, step), self.pairs
        for mask in self.masks:
            mask.at(progress)
        sums = [self._of_part(pairs[tag], part, method, dropped_mass=dropped_mass) for tag, part in batch.parts.items()]
        if not self.is_tagged:
            return sums[0]
        # a rank without a row of a teacher must give what learns with that one a gradient too, or DDP waits
        modules = [module for module in self.auxiliary_modules.values() if module is not None]
        whole = added(sums)
        return whole._replace(loss=whole.loss + 0 * sum(p.sum() for module in modules for p in module.parameters()))

    def _of_part(self, pair: Pair, batch: Batch, method: Method, *, dropped_mass: bool) -> SummedLoss:
        signals = pair(batch, method.needs)
        if batch.written is not None:
            signals = replace(signals, labelled=~batch.written[signals.sample])
        sums = self._sum(pair, method, signals)
        if dropped_mass and (mass := pair.dropped_mass(signals)) is not None:
            sums = sums._replace(statistics=sums.statistics | {"dropped_mass": mass.sum()})
        if dropped_mass and (mass := uncovered_mass(signals)) is not None:
            sums = sums._replace(statistics=sums.statistics | {"uncovered_mass": mass.sum()})
        return sums

    def _sum(self, pair: Pair, method: Method, signals: Signals) -> SummedLoss:
        if self.loss == "plain":
            sums = plain_loss(AutogradTerms(method.token_terms, method.statistics), signals)
        else:
            sums = fused_loss(method.chunk_loss(), signals)
        if signals.activations:
            with torch.autocast(signals.sample.device.type, enabled=False):  # in the precision of what is compared
                terms = method.sample_terms(signals, pair.learned)
            sums = with_samples(sums, terms, signals)
        elif method.needs == pair.needs:
            return sums
        # where no sample has an image, or this step leaves a pathway out, what learns with the student has a gradient too, or DDP waits
        modules = [module for module in pair.auxiliary_modules.values() if module is not None]
        return sums._replace(loss=sums.loss + 0 * sum(p.sum() for module in modules for p in module.parameters()))

    def unmask(self) -> None:
        """Make every teacher whole again: the next stage may learn from it too."""
        for mask in self.masks:
            mask.set(0.0)

    @torch.no_grad()
    def not_finite(self, batch: AnyBatch) -> dict[str, list[str]]:
        """Sample → the pathways whose logits at its answers are not finite: what explains a loss that is not."""
        blamed: dict[str, list[str]] = {}
        for tag, part in batch.parts.items():
            blamed |= self._not_finite(self.pairs[tag], part)
        return blamed

    def _not_finite(self, pair: Pair, batch: Batch) -> dict[str, list[str]]:
        signals = pair(batch)
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
