"""What every method is: the pathways it needs, and the terms whose sum is the loss."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from switchkd.losses import ChunkLoss, PlainTerms
from switchkd.types import Need, Routes

#: Named values in nats, one for each answer token.
Terms = dict[str, Float[Tensor, " answers"]]
#: forward: KL(p_T ‖ p_S), the expectation is the teacher's. reverse: KL(p_S ‖ p_T), the learner's.
Direction = Literal["forward", "reverse"]


def check_temperature(name: str, temperature: float) -> None:
    """Raise ValueError unless the temperature of method `name` is a positive, finite number."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"{name}: temperature must be positive and finite, got {temperature}")


class Method(ABC):
    """A distillation method: a frozen dataclass whose fields are its knobs.

    A method knows routes, never models. The trainer sums what `terms` returns and divides once, by the number of answer tokens of the
    global batch (all ranks, all accumulation steps), so a term carries its weight and no reduction.
    """

    name: ClassVar[str]

    @property
    @abstractmethod
    def needs(self) -> frozenset[Need]:
        """The pathways whose logits `terms` reads."""

    @abstractmethod
    def terms(self, routes: Routes, targets: Int[Tensor, " answers"]) -> Terms:
        """The weighted terms of the loss at every answer token."""

    @property
    def directions(self) -> dict[str, Direction]:
        """Which way the divergences among the terms point. The doctor holds it against a pair of known distributions."""
        return {}

    def statistics(self, routes: Routes) -> Terms:
        """What else is worth a line in the log, per answer token; not part of the loss."""
        return {}

    def chunk_loss(self) -> ChunkLoss:
        """The same for the fused loss. A method whose gradients are written out returns them here; for the others autograd finds them."""
        return PlainTerms(self.terms, self.statistics)
