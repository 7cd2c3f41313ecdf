"""The section `on_policy` of a recipe."""

import math
from dataclasses import dataclass

from switchkd.recipe.field_checks import at_least, require
from switchkd.typed_fields import check_fields


@dataclass(frozen=True)
class OnPolicy:
    """Answers that the student writes itself before a step: divergences are taken at them, cross-entropy at the data's alone (GKD)."""

    #: The share of the rows that the student answers anew; each row of each step is drawn by itself.
    share: float = 0.5
    #: Longer answers are cut.
    max_new_tokens: int = 128
    #: Of the sampling; 0: greedy.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            0 < self.share <= 1, f"share must be above 0 and at most 1, got {self.share}; leave on_policy out for 0"
        )
        require(
            0 <= self.temperature < math.inf, f"temperature must be finite and not negative, got {self.temperature}"
        )
        at_least(self, 1, "max_new_tokens")
