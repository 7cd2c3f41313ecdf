"""What a loss makes of the values of logits, as tensors of its sizes: for the estimate of the memory that a step needs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from switchkd.losses import AutogradTerms, ChunkLoss, CrossEntropyDBiLD
from switchkd.losses.chunks import ChunkGradients, ChunkSums
from switchkd.losses.projection import Sparse
from switchkd.methods import Method, Need
from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerm, TokenTerms


class StandIn(Method):
    """A method's pathways, and tensors of the sizes that its terms make of their logits, whose values are not known."""

    name: ClassVar[str] = "stand-in"

    def __init__(self, method: Method) -> None:
        self.method = method

    @property
    def needs(self) -> frozenset[Need]:
        """Those of the method."""
        return self.method.needs

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """What autograd keeps of a divergence: the softmax of every learner's logits, and of the teacher's."""
        terms = {"ce": TokenTerm(logits.student.log_softmax(dim=-1).sum(dim=-1))}
        for one in logits.compared.values():
            for route, learner in (("align", one.student), ("switch", one.switch)):
                if learner is not None:
                    both = learner.log_softmax(dim=-1) * one.teacher.softmax(dim=-1)
                    terms[route] = one.term(both.sum(dim=-1))
        return terms

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """Left out, and said so: `left_out`."""
        return {}

    def chunk_loss(self) -> ChunkLoss:
        """Gradients that are written out, or found by autograd, as the method's are."""
        loss = self.method.chunk_loss()
        return _WrittenOut(loss) if isinstance(loss, CrossEntropyDBiLD) else AutogradTerms(self.token_terms)


@dataclass(frozen=True)
class _WrittenOut(ChunkLoss):
    """`CrossEntropyDBiLD`: the student's logits become their gradient, the switch's gradient is at the ids that two leaders choose."""

    loss: CrossEntropyDBiLD

    def __call__(
        self, logits: AnswerLogits, *, student: torch.dtype | None, switch: bool
    ) -> tuple[ChunkSums, ChunkGradients]:
        """See `ChunkLoss`."""
        sums = ChunkSums({"ce": logits.student.new_zeros((), dtype=torch.float64)})
        gradients = ChunkGradients(None if student is None else logits.student)
        for name, one in logits.compared.items():
            if switch and one.switch is not None:
                window = min(2 * (self.loss.settings.window or one.switch.shape[1]), one.switch.shape[1])
                ids = torch.zeros(len(one.switch), window, dtype=torch.long, device=one.targets.device)
                gradients.switch[name] = Sparse(ids, one.switch.new_zeros(ids.shape))
        return sums, gradients
