"""Switch-KD (arXiv 2604.14629): align the student's answers, and what the teacher would answer through the student's eyes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar, get_args

from switchkd.methods.method import Method, Need, check_temperature
from switchkd.names import TEACHER, Direction, Route, Softmax
from switchkd.typed_fields import check_fields

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from switchkd.losses import CrossEntropyDBiLD, DBiLDSettings
    from switchkd.signals import AnswerLogits, ComparedLogits, TokenTerms


@dataclass(frozen=True)
class SwitchKD(Method):
    """L = CE(z_S, y) + λ1·DBiLD(z_T, z_S) + λ2·DBiLD(z_T, z_SW), with z_SW = L_T(P_T(V_S(x)), t).

    `align` is λ1, `switch` is λ2; the others are those of `switchkd.losses.dbild`. Reverse KL from both leaders unless `direction` is
    forward, no T² factor unless `t_squared`. A weight of 0 leaves its pathway out: `switch: 0` is align-only, `align: 0` switch-only. The
    switch term trains the student's vision encoder and nothing else.
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
        if self.top_k is not None and self.top_k < 3:
            raise ValueError(
                f"switch_kd: top_k must be at least 3, got {self.top_k}: the probability of a single pair is always 1, so 2 logits teach "
                "nothing; leave it out to compare as many as the knee says"
            )

    @property
    def needs(self) -> frozenset[Need]:
        """Student and teacher, and the switch where it has a weight."""
        return frozenset({"student", "teacher", "switch"} if self.switch else {"student", "teacher"})

    @property
    def directions(self) -> dict[str, Direction]:
        """The same from both leaders, reverse by default."""
        return {name: self.direction for name, weight in (("align", self.align), ("switch", self.switch)) if weight}

    def at(self, progress: float) -> SwitchKD:
        """With the λ2 of this step."""
        if progress >= self.switch_warmup:
            return self
        return replace(self, switch=self.switch * progress / self.switch_warmup, switch_warmup=0.0)

    def token_terms(self, logits: AnswerLogits) -> TokenTerms:
        """Cross-entropy, `align` and `switch`, each at its weight."""
        from switchkd.losses import cross_entropy

        compared = logits.compared[TEACHER]
        terms = {"ce": logits.term(cross_entropy(logits.student, logits.targets))}
        if self.align:
            terms["align"] = compared.term(self.align * self._dbild(compared, "student"))
        if self.switch:
            terms["switch"] = compared.term(self.switch * self._dbild(compared, "switch"))
        return terms

    def _dbild(self, compared: ComparedLogits, learner: Route) -> Float[Tensor, " compared"]:
        from switchkd.losses import dbild

        return dbild(compared.of(learner), compared.teacher, **asdict(self._settings))

    def statistics(self, logits: AnswerLogits) -> TokenTerms:
        """The knee k of each leader: a k stuck at `min_k` means that almost no logits are compared. None where k is fixed."""
        from switchkd.losses import knee

        if self.top_k is not None:
            return {}
        compared = logits.compared[TEACHER]
        weights: dict[Route, float] = {"teacher": 1, "student": self.align, "switch": self.switch}
        return {
            f"knee_{route}": compared.term(knee(compared.of(route), window=self.window, min_k=self.min_k).float())
            for route, weight in weights.items()
            if weight
        }

    def chunk_loss(self) -> CrossEntropyDBiLD:
        """The same terms and statistics, every gradient written out."""
        from switchkd.losses import CrossEntropyDBiLD

        return CrossEntropyDBiLD(self.align, self.switch, self._settings)

    @property
    def _settings(self) -> DBiLDSettings:
        from switchkd.losses import DBiLDSettings

        return DBiLDSettings(
            self.temperature, self.window, self.min_k, self.top_k, self.direction, self.softmax, self.t_squared
        )
