"""Names that recipes and methods are written in. Nothing here imports a model library, so that a recipe is checked at once."""

from dataclasses import dataclass
from typing import ClassVar, Literal

#: The name of the one teacher that a recipe has.
TEACHER = "teacher"
#: What a row shows, besides text.
Kind = Literal["image", "video"]
#: The pathways whose distributions a method can ask for.
Route = Literal["student", "teacher", "switch"]
#: forward: KL(p_T ‖ p_X), the expectation is the teacher's. reverse: KL(p_X ‖ p_T), the learner's.
Direction = Literal["forward", "reverse"]
#: What one softmax is over: all pairs i < j, or for each i those with j > i.
Softmax = Literal["all", "row"]


@dataclass(frozen=True)
class VisualWeights:
    """Weigh a row's answer tokens by how much the teacher's opinion of them depends on what is seen (VA-OPD, arXiv 2605.21924).

    The visual advantage of answer token y is max(0, log p_T(y | pictures) − log p_T(y | the pictures without detail)), in nats.
    """

    #: So large a share of a row's answer tokens, those of the greatest visual advantage above 0, are one group, and all others another.
    share: float = 0.2
    #: What the first group weighs of a row; the others weigh the rest.
    high: float = 0.5
    #: Without detail a picture is shrunk to so large a share of its sides and enlarged again; 0: it is of one colour.
    detail: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")
        if not 0 <= self.high <= 1:
            raise ValueError(f"high is a share, from 0 to 1, got {self.high}")
        if not 0 <= self.detail < 1:
            raise ValueError(f"detail must be at least 0 and below 1, where nothing is lost, got {self.detail}")


class Place:
    """A place inside both models: `models.capture` has them. Equal places are one."""

    #: What the last two axes of a sample's tensor count.
    axes: ClassVar[tuple[str, str]] = ("tokens", "channels")
