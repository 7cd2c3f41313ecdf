"""Switch-KD (arXiv 2604.14629): align the student's answers, and what the teacher would answer through the student's eyes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar, get_args

from switchkd.methods.method import Method, Need, check_temperature, check_unread
from switchkd.methods.sft import SFT
from switchkd.models.capture import Switched
from switchkd.names import TEACHER, Direction, Route, Softmax
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from switchkd.losses import CrossEntropyDBiLD, DBiLDSettings
    from switchkd.signals import AnswerLogits, ComparedLogits, SampleTerms, Signals, TokenTerms


@dataclass(frozen=True)
class SwitchKD(Method):
    """L = CE(z_S, y) + λ1·DBiLD(z_T, z_S) + λ2·DBiLD(z_T, z_SW), with z_SW = L_T(P_T(V_S(x)), t).

    `align` is λ1, `switch` is λ2; the others are those of `switchkd.losses.dbild`. Reverse KL from both leaders unless `direction` is
    forward, no T² factor unless `t_squared`. A weight of 0 leaves its pathway out: `switch: 0` is align-only, `align: 0` switch-only. The
    switch term trains the student's vision encoder and nothing else.

    Cheaper switches, not in the paper. With `switch_layers` m the teacher's language model runs through its first m layers alone, without
    head, and λ2 weighs Σ‖h_m(B(V_S(x))) − h_m(V_T(x))‖² / Σ‖h_m(V_T(x))‖², h_m the hidden states behind layer m at a row's visual tokens
    and at what predicts its answers; h_0 = P_T, the visual tokens as they enter the language model. With `switch_every` n a step in n has
    the switch, at n·λ2, so that its mean weight stays λ2 (as in the lazy regularisation of StyleGAN2, arXiv 1912.04958); with
    `switch_until` the first share of a stage's steps has it. At the other steps its pathway is not computed.
    """

    name: ClassVar[str] = "switch_kd"
    #: λ1, the weight of what is aligned with the teacher's own answers.
    align: float = 1.0
    #: λ2, the weight of the visual switch.
    switch: float = 1.0
    #: Logits are divided by it before the comparison.
    temperature: float = 3.0
    #: The knee is looked for among so many largest logits; none: among all.
    window: int | None = 128
    #: The knee is no smaller k than this.
    min_k: int = 3
    #: A fixed k in place of the knee.
    top_k: int | None = None
    #: Of the KL: reverse expects under the learner, forward under the teacher.
    direction: Direction = "reverse"
    #: One over all differences of the compared logits, or one for each of them against those below it.
    softmax: Softmax = "all"
    #: Multiply the terms by temperature².
    t_squared: bool = False
    #: Over this share of a stage's steps λ2 rises to `switch`, in equal parts from step to step.
    switch_warmup: float = 0.0
    #: The first of so many steps has the switch, at so many times λ2; 1: every step.
    switch_every: int = 1
    #: Up to this share of a stage's steps there is a switch, in the first one always, and none behind it.
    switch_until: float = 1.0
    #: The switch ends behind so many layers of the teacher's language model, and hidden states are compared; 0: projected features; none:
    #: it runs to the answers.
    switch_layers: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not (0 <= self.align < math.inf and 0 <= self.switch < math.inf):
            raise ValueError(
                f"switch_kd: weights must be finite and not negative, got align={self.align}, switch={self.switch}"
            )
        if self.align == self.switch == 0:
            raise ValueError("switch_kd: align and switch are both 0, which leaves plain cross-entropy: use method sft")
        check_temperature(self.name, self.temperature)
        if self.min_k < 2 or (self.window is not None and self.window < self.min_k):
            raise ValueError(f"switch_kd: need 2 <= min_k <= window, got min_k={self.min_k}, window={self.window}")
        if self.direction not in get_args(Direction):
            raise ValueError(f"switch_kd: direction must be forward or reverse, got {self.direction!r}")
        if self.softmax not in get_args(Softmax):
            raise ValueError(f"switch_kd: softmax must be all or row, got {self.softmax!r}")
        if not 0 <= self.switch_warmup <= 1:
            raise ValueError(f"switch_kd: switch_warmup is a share of the steps, from 0 to 1, got {self.switch_warmup}")
        if self.switch_warmup and not self.switch:
            raise ValueError(
                f"switch_kd: switch_warmup is {self.switch_warmup}, but switch is 0, so there is nothing to warm up"
            )
        if self.switch_every < 1 or not 0 < self.switch_until <= 1:
            raise ValueError(
                "switch_kd: switch_every is at least 1 step and switch_until a share of the steps above 0 and up to 1, got "
                f"switch_every={self.switch_every}, switch_until={self.switch_until}"
            )
        if self.switch_warmup > self.switch_until:
            raise ValueError(
                f"switch_kd: switch_warmup is {self.switch_warmup} and switch_until {self.switch_until}: the switch would end before it "
                "has its weight"
            )
        if self.switch_layers is not None and self.switch_layers < 0:
            raise ValueError(
                f"switch_kd: switch_layers is a number of layers, or 0 for projected features alone, got {self.switch_layers}"
            )
        if not self.switch and (self.switch_every > 1 or self.switch_until < 1 or self.switch_layers is not None):
            raise ValueError(
                f"switch_kd: switch is 0, so there is nothing that switch_every={self.switch_every}, switch_until={self.switch_until} and "
                f"switch_layers={self.switch_layers} could change: leave them out"
            )
        if self.top_k is not None and self.top_k < 3:
            raise ValueError(
                f"switch_kd: top_k must be at least 3, got {self.top_k}: the probability of a single pair is always 1, so 2 logits teach "
                "nothing; leave it out to compare as many as the knee says"
            )
        if not self.compares_answers:
            reason = f"align is 0 and the switch ends behind {self.switch_layers} layers"
            check_unread(self, reason, "temperature", "top_k", "direction", "softmax", "t_squared")

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, and the switch where it has a weight, as far as it runs."""
        needs: set[Need] = {"student", "teacher"}
        if self.switch:
            needs.add("switch" if self.switch_layers is None else Switched(self.switch_layers))
        return frozenset(needs)

    @property
    def compares_answers(self) -> bool:
        """Not where nothing is aligned and the switch ends behind some layers."""
        return bool(self.align or self._to_answers)

    @property
    def _to_answers(self) -> float:
        """λ2 of a switch that runs to the answers; 0 without one."""
        return self.switch if self.switch_layers is None else 0.0

    @property
    def directions(self) -> dict[str, Direction]:
        """The same from both leaders, reverse by default."""
        weights = {"align": self.align, "switch": self._to_answers}
        return {name: self.direction for name, weight in weights.items() if weight}

    def at(self, progress: float, step: int | None = None) -> Method:
        """With the λ2 of this step; plain cross-entropy where that is 0 and nothing is aligned."""
        switch = self.switch if progress >= self.switch_warmup else self.switch * progress / self.switch_warmup
        if step is not None:
            switch *= 0 if step % self.switch_every else self.switch_every
        if progress > self.switch_until and step != 0:
            switch = 0.0
        if switch == self.switch:
            return self
        if not switch and not self.align:
            return SFT()
        layers = self.switch_layers if switch else None
        return replace(self, switch=switch, switch_warmup=0.0, switch_every=1, switch_until=1.0, switch_layers=layers)

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy, `align`, and `switch` where it runs to the answers, each at its weight."""
        from switchkd.losses import cross_entropy

        compared = logits.compared[TEACHER]
        terms = {"ce": logits.term(cross_entropy(logits.student, logits.targets))}
        if self.align:
            terms["align"] = compared.term(self.align * self._dbild(compared, "student"))
        if self._to_answers:
            terms["switch"] = compared.term(self.switch * self._dbild(compared, "switch"))
        return terms

    def sample_terms(self, signals: Signals, learned: nn.Module | None) -> SampleTerms:
        """`switch` where it ends behind some layers, at its weight."""
        import torch

        from switchkd.losses import relative_error

        (site,) = self.sites
        pairs = signals.activations[TEACHER].pairs(site)
        return {"switch": self.switch * torch.stack([relative_error(*pair) for pair in pairs])}

    def _dbild(self, compared: ComparedLogits, learner: Route) -> Float[Tensor, " compared"]:
        from switchkd.losses import dbild

        return dbild(compared.of(learner), compared.teacher, **asdict(self._settings))

    def statistics(self, logits: AnswerLogits) -> TokenTerms:
        """The knee k of each leader: a k stuck at `min_k` means that almost no logits are compared. None where k is fixed or none are."""
        from switchkd.losses import knee

        if self.top_k is not None or not (self.align or self._to_answers):
            return {}
        compared = logits.compared[TEACHER]
        weights: dict[Route, float] = {"teacher": 1, "student": self.align, "switch": self._to_answers}
        return {
            f"knee_{route}": compared.term(knee(compared.of(route), window=self.window, min_k=self.min_k).float())
            for route, weight in weights.items()
            if weight
        }

    def chunk_loss(self) -> CrossEntropyDBiLD:
        """The same terms and statistics, every gradient written out."""
        from switchkd.losses import CrossEntropyDBiLD

        return CrossEntropyDBiLD(self.align, self._to_answers, self._settings)

    @property
    def _settings(self) -> DBiLDSettings:
        from switchkd.losses import DBiLDSettings

        return DBiLDSettings(
            self.temperature, self.window, self.min_k, self.top_k, self.direction, self.softmax, self.t_squared
        )
