"""Feature distillation: align the student's answers, and pull what it sees towards what the teacher sees. The plain rival of the switch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need, check_temperature, check_unread
from switchkd.methods.sft import SFT
from switchkd.methods.switch_kd import SwitchKD
from switchkd.models.capture import Vision
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from torch import nn

    from switchkd.losses import ChunkLoss
    from switchkd.signals import AnswerLogits, SampleTerms, Signals, Sizes, TokenTerms


@dataclass(frozen=True)
class FeatureKD(Method):
    """L = CE(z_S, y) + λ·DBiLD(z_T, z_S) + μ·mean_c w_c·MSE_c(B(V_S(x)), V_T(x)), c the channels.

    `align` is λ, with `temperature`, `window` and `min_k` as in `switch_kd`; `features` is μ. MSE_c is a mean over all visual tokens of a
    row, not divided by the scale of V_T. With `fisher_rows` a channel weighs as much as it matters to what the teacher says
    (`pairing.fisher`; w has a mean of 1), measured on that many rows before the first step; without, w = 1. B is the pair's bridge where
    the encoders differ in width, tokens or family (FitNets, arXiv 1412.6550), and the identity where they do not. The term trains the
    student's vision encoder and the bridge, and nothing else.
    """

    name: ClassVar[str] = "feature_kd"
    answer_weights: ClassVar[tuple[str, ...]] = ("align",)
    sample_weights: ClassVar[tuple[str, ...]] = ("features",)
    #: λ, the weight of what is aligned with the teacher's answers.
    align: float = 1.0
    #: μ, the weight of the distance of visual features.
    features: float = 1.0
    #: As in `switch_kd`.
    temperature: float = 3.0
    #: As in `switch_kd`.
    window: int | None = 128
    #: As in `switch_kd`.
    min_k: int = 3
    #: Channels are weighed by the teacher's Fisher information, measured on so many first rows of the data; 0: all alike.
    fisher_rows: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if not (0 <= self.align < math.inf and 0 < self.features < math.inf):
            raise ValueError(
                f"feature_kd: features must be positive and align not negative, both finite, got features={self.features}, "
                f"align={self.align}; without features, use method switch_kd with switch: 0"
            )
        check_temperature(self.name, self.temperature)
        if self.min_k < 2 or (self.window is not None and self.window < self.min_k):
            raise ValueError(f"feature_kd: need 2 <= min_k <= window, got min_k={self.min_k}, window={self.window}")
        if self.fisher_rows < 0:
            raise ValueError(f"feature_kd: fisher_rows must not be negative, got {self.fisher_rows}")
        if not self.align:
            check_unread(self, "align is 0", "temperature")

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, and what both see."""
        return frozenset({"student", "teacher", Vision()})

    @property
    def directions(self) -> dict[str, Direction]:
        """Those of `align`: reverse, from both leaders."""
        return self._answers.directions

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy and `align`, at its weight."""
        return self._answers.token_terms(logits)

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """`features`, at its weight."""
        import torch

        from switchkd.losses import squared_error
        from switchkd.methods.feature_weights import FeatureWeights

        weights = learned.known() if isinstance(learned, FeatureWeights) else None
        pairs = signals.activations[TEACHER].pairs(Vision())
        errors = [
            squared_error(student_features, teacher_features, weights) for student_features, teacher_features in pairs
        ]
        return {"features": self.features * torch.stack(errors)}

    def learned(self, student: Sizes, teacher: Sizes) -> nn.Module | None:
        """The weights of the channels, which are measured once and kept; None where they are alike."""
        from switchkd.methods.feature_weights import FeatureWeights

        return FeatureWeights(teacher.features, self.fisher_rows) if self.fisher_rows else None

    def statistics(self, logits: AnswerLogits) -> TokenTerms:
        """The knees of `align`."""
        return self._answers.statistics(logits)

    def chunk_loss(self) -> ChunkLoss:
        """Of the terms on the answers."""
        return self._answers.chunk_loss()

    @property
    def _answers(self) -> Method:
        """What is learned from the answers alone."""
        return SwitchKD(self.align, 0, self.temperature, self.window, self.min_k) if self.align else SFT()
