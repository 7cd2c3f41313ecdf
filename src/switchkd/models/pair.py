"""A student and its frozen teacher: the visual switch, and what must agree before it can work."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from switchkd.models.families.base import Features
from switchkd.models.pathway import Pathway
from switchkd.types import Batch, Hidden, Need, Routes, to_device

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Pair(nn.Module):
    """The only module that the trainer, DDP and FSDP see: a student, and a teacher where the method has one.

    The teacher is in eval mode and without gradients whatever happens to the pair; the switch runs *through* it, so that the gradient
    reaches the student's vision encoder.

    Args:
        student: the pathway that learns.
        teacher: the frozen pathway, or None.
        needs: the routes that the method will ask for; what they require is checked here, before anything runs.
        vocabulary: the number of real token ids, `len(tokenizer)`; head rows beyond it are padding and never compared.

    Raises:
        ValueError: if the pair does not fit `needs`, with both numbers.
    """

    # How transformers.Trainer is told that the loss shifts labels and divides by the answer tokens of the global batch itself
    loss_type = "ForCausalLM"
    accepts_loss_kwargs = True

    def __init__(
        self, student: Pathway, teacher: Pathway | None, *, needs: frozenset[Need], vocabulary: int | None = None
    ) -> None:
        super().__init__()
        rows = student.head.rows
        self.vocabulary = rows if vocabulary is None else vocabulary
        if self.vocabulary > rows:
            raise ValueError(
                f"the tokenizer has {self.vocabulary} ids but the student's head only {rows} rows: "
                "the processor belongs to another model"
            )
        check_fit(student, teacher, needs)
        self.student = student
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.one_encoder = "teacher" in needs and teacher is not None and see_alike(student, teacher)
        if self.one_encoder:
            _log.info("the student's vision encoder is the teacher's, and frozen: it runs once for both")

    def forward(self, batch: Batch, needs: frozenset[Need], finish: Callable[[Hidden], T] | None = None) -> Routes | T:
        """The logits of the routes in `needs` at the answer positions, or what `finish` makes of the hidden states before the heads.

        `finish` runs in here, so that DDP and FSDP see the heads being used. It returns tensors in a tuple or a dict, where they look.
        """
        seen = self.student.see(batch)  # V_S(x)
        hidden = Hidden(
            student=self.student.say(seen, batch),  # L_S(P_S(V_S(x)), t)
            teacher=self._teacher(seen, batch) if "teacher" in needs else None,
            switch=self._switch(seen, batch) if "switch" in needs else None,
            student_head=self.student.head,
            teacher_head=self.teacher.head if self.teacher is not None and needs & {"teacher", "switch"} else None,
            vocabulary=self.vocabulary,
        )
        return hidden.routes() if finish is None else finish(hidden)

    def _switch(self, seen: Features | None, batch: Batch) -> Float[Tensor, "answers hidden"]:
        """L_T(P_T(V_S(x)), t): the visual switch. The teacher speaks about what the student sees."""
        assert self.teacher is not None
        return self.teacher.say(seen, batch)

    @torch.no_grad()
    def _teacher(self, seen: Features | None, batch: Batch) -> Float[Tensor, "answers hidden"]:
        """L_T(P_T(V_T(x)), t); where V_T is V_S, the teacher need not look again."""
        assert self.teacher is not None
        return self.teacher.say(seen if self.one_encoder else self.teacher.see(batch), batch)

    def train(self, mode: bool = True) -> "Pair":
        """Set the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


@torch.no_grad()
def see_alike(student: Pathway, teacher: Pathway) -> bool:
    """Whether V_S(x) is V_T(x) bit for bit and stays so: equal weights, none of which trains, and equal features of a blank image.

    The image tells what weights do not: the layer that features are taken from, and dropout.
    """
    if student.family is not teacher.family or any(p.requires_grad for p in student.part_parameters("vision").values()):
        return False
    for ours, theirs in zip(student.part("vision"), teacher.part("vision"), strict=True):
        mine, other = ours.state_dict(), theirs.state_dict()
        if mine.keys() != other.keys() or not all(_equal(tensor, other[name]) for name, tensor in mine.items()):
            return False
    device = student.head.weight.device
    blank = to_device(student.family.blank(student.model.config), device)
    training = student.training
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found, expected = student.train().see(blank), teacher.see(blank)
    student.train(training)
    assert found is not None
    assert expected is not None
    return _equal(found, expected)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def check_fit(student: Pathway, teacher: Pathway | None, needs: frozenset[Need]) -> None:
    """Raise ValueError, with both numbers, if `teacher` cannot teach `student` along the routes in `needs`."""
    if not needs & {"teacher", "switch"}:
        return
    if teacher is None:
        raise ValueError(f"the method needs the routes {', '.join(sorted(needs))}, but there is no teacher")
    ours, theirs = (pathway.family.geometry(pathway.model.config) for pathway in (student, teacher))
    for what in ours:
        if ours[what] != theirs[what] and (what != "feature width" or "switch" in needs):
            raise ValueError(
                f"student and teacher differ in {what}: {ours[what]} and {theirs[what]}. They read the same batch and their logits "
                "are compared one to one, so choose a student with the teacher's"
            )
    if "switch" in needs:
        vision = student.part_parameters("vision").values()
        if not any(parameter.requires_grad for parameter in vision):
            raise ValueError(
                f"the student's vision encoder is frozen (0 of {sum(p.numel() for p in vision)} parameters train) and the switch "
                "trains nothing else: add vision to the stage's `train`, or set the method's switch to 0"
            )
