"""Feature distillation: align the student's answers, and pull what it sees towards what the teacher sees. The plain rival of the switch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from switchkd.methods.method import Method, Need, check_temperature
from switchkd.methods.sft import SFT
from switchkd.methods.switch_kd import SwitchKD
from switchkd.models.capture import Vision
from switchkd.names import TEACHER, Direction
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from torch import nn

    from switchkd.losses import ChunkLoss
    from switchkd.signals import AnswerLogits, SampleTerms, Signals, TokenTerms


@dataclass(frozen=True)
class FeatureKD(Method):
    """L = CE(z_S, y) + λ·DBiLD(z_T, z_S) + μ·MSE(B(V_S(x)), V_T(x)).

    `align` is λ, with `temperature`, `window` and `min_k` as in `switch_kd`; `features` is μ. The MSE is a mean over all visual tokens and
    channels of a row, not divided by the scale of V_T. B is the pair's bridge where the encoders differ in width, tokens or family
    (FitNets, arXiv 1412.6550), and the identity where they do not. The term trains the student's vision encoder and the bridge, and
    nothing else.
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

        pairs = signals.activations[TEACHER].pairs(Vision())
        errors = [squared_error(student_features, teacher_features) for student_features, teacher_features in pairs]
        return {"features": self.features * torch.stack(errors)}

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
