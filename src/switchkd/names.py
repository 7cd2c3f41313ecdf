"""Names that recipes and methods are written in. Nothing here imports a model library, so that a recipe is checked at once."""

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


class Place:
    """A place inside both models: `models.capture` has them. Equal places are one."""

    #: What the last two axes of a sample's tensor count.
    axes: ClassVar[tuple[str, str]] = ("tokens", "channels")
