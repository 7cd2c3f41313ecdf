"""What every method is: the pathways it needs, and the terms whose sum is the loss."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from switchkd.losses import ChunkLoss, PlainTerms
from switchkd.types import Inner, Look, Need, Routes, Sizes

#: Named values in nats, one for each answer token.
Terms = dict[str, Float[Tensor, " answers"]]
#: Named values, one for each row of the batch.
RowTerms = dict[str, Float[Tensor, " rows"]]
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
        """The pathways whose logits `terms` reads, and what `row_terms` looks at inside both models."""

    @abstractmethod
    def terms(self, routes: Routes, targets: Int[Tensor, " answers"]) -> Terms:
        """The weighted terms of the loss at every answer token."""

    def row_terms(self, student: Inner, teacher: Inner, learned: nn.Module | None) -> RowTerms:
        """The weighted terms about what is inside both models, one value for each row; 0 for a row that has nothing to compare.

        Every answer token carries the value of its row: the trainer adds Σ over rows of value × answer tokens of the row before it divides.
        So these terms too are the same however the global batch is spread over ranks and steps. Only called where `needs` looks inside.
        """
        return {}

    def learned(self, student: Sizes, teacher: Sizes) -> nn.Module | None:
        """What `row_terms` needs of weights of its own, such as a map from the student's width to the teacher's.

        They learn with the student, are kept in checkpoints for resuming, and are in no finished student.
        """
        return None

    @property
    def directions(self) -> dict[str, Direction]:
        """Which way the divergences among the terms point. The doctor holds it against a pair of known distributions."""
        return {}

    def at(self, progress: float) -> "Method":
        """The method as it is at a step of a stage, `progress` from above 0 (first step) to 1 (last): itself, unless a weight changes."""
        return self

    def statistics(self, routes: Routes) -> Terms:
        """What else is worth a line in the log, per answer token; not part of the loss."""
        return {}

    def chunk_loss(self) -> ChunkLoss:
        """The same for the fused loss. A method whose gradients are written out returns them here; for the others autograd finds them."""
        return PlainTerms(self.terms, self.statistics)


def side_by_side(
    look: Look, student: Inner, teacher: Inner, *, width: bool = True
) -> list[tuple[Float[Tensor, "..."], Float[Tensor, "..."]]]:
    """What both models have of each row.

    Args:
        look: what is compared.
        student: of the student.
        teacher: of the teacher.
        width: whether the last axis must agree too. It does not where a head or a learned map comes before the comparison.

    Raises:
        ValueError: with both numbers, where the two cannot be laid side by side.
    """
    pairs = list(zip(student[look], teacher[look], strict=True))
    for row, (ours, theirs) in enumerate(pairs):
        axes = ("texts", "tokens") if look == "attention" else ("tokens", "channels")
        for what, place in zip(axes, (-2, -1) if width else (-2,), strict=False):
            if ours.shape[place] != theirs.shape[place]:
                raise ValueError(
                    f"row {row} of a batch has {ours.shape[place]} {what} of {look!r} in the student and {theirs.shape[place]} in the "
                    "teacher, and they are compared one by one: choose models (or image processors) that agree in this, or another method"
                )
    return pairs
