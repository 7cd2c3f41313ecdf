"""A student and its frozen teacher: the visual switch, and what must agree before it can work."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from switchkd.models.capture import Watch, check_same_text
from switchkd.models.families.family import Features
from switchkd.models.pathway import Pathway
from switchkd.pairing import compatibility as fit
from switchkd.pairing.bridge import Bridge, Grid
from switchkd.pairing.vocabulary import Ids, Vocabulary
from switchkd.types import LOOKS, Batch, Hidden, Inner, Look, Need, Routes, to_device

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Pair(nn.Module):
    """The only module that the trainer, DDP and FSDP see: a student, and a teacher where the method has one.

    The teacher is in eval mode and without gradients whatever happens to the pair; the switch runs *through* it, so that the gradient
    reaches the student's vision encoder. Where the two read differently, a batch holds what the teacher reads in `batch["teacher"]`.

    Args:
        student: the pathway that learns.
        teacher: the frozen pathway, or None.
        needs: the routes that the method will ask for; what they require is checked here, before anything runs.
        vocabulary: the number of real token ids, `len(processor.tokenizer)`; head rows beyond it are padding and never compared. Where
            the tokenizers differ, the ids that mean the same in both. Required where `needs` has the teacher.
        bridge: from the student's visual features to the teacher's projector, where their shapes differ.
        learned: what else the method trains, beside the student: it lives and learns with the pair and is in no student.

    Raises:
        ValueError: if the pair does not fit `needs`, with both numbers.
    """

    # How transformers.Trainer is told that the loss shifts labels and divides by the answer tokens of the global batch itself
    loss_type = "ForCausalLM"
    accepts_loss_kwargs = True

    def __init__(
        self,
        student: Pathway,
        teacher: Pathway | None,
        *,
        needs: frozenset[Need],
        vocabulary: int | Ids | None = None,
        bridge: Bridge | None = None,
        learned: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._apart = check_fit(student, teacher, needs, bridged=bridge is not None)
        self.student = student
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.bridge = bridge if "switch" in needs else None
        self.learned = learned
        for pathway in (student, *([teacher] if teacher is not None else [])):
            pathway.show_attention("attention" in needs)
        self.shared = Vocabulary(
            vocabulary, student.head, teacher.head if teacher is not None and "teacher" in needs else None
        )
        self.one_encoder = "teacher" in needs and teacher is not None and see_alike(student, teacher)
        if self.one_encoder:
            _log.info("the student's vision encoder is the teacher's, and frozen: it runs once for both")

    @property
    def beside(self) -> dict[str, nn.Module | None]:
        """What learns with the student and is not part of it, by its name in the pair."""
        return {"bridge": self.bridge, "learned": self.learned}

    @property
    def vocabulary(self) -> int:
        """How many ids are compared."""
        return self.shared.size

    def dropped_mass(self, hidden: Float[Tensor, "n hidden"]) -> Float[Tensor, " n"] | None:
        """The teacher's probability on ids that are not compared, from its hidden states; None where all real ones are."""
        assert self.teacher is not None
        return self.shared.dropped_mass(hidden, self.teacher.head)

    def forward(self, batch: Batch, needs: frozenset[Need], finish: Callable[[Hidden], T] | None = None) -> Routes | T:
        """The logits of the routes in `needs` at the answer positions, or what `finish` makes of the hidden states before the heads.

        `finish` runs in here, so that DDP and FSDP see the heads being used. It returns tensors in a tuple or a dict, where they look.
        """
        theirs = self._theirs(batch, needs)
        looks = LOOKS & needs
        if looks & {"text", "attention"} and theirs is not batch:
            assert self.teacher is not None
            check_same_text(self.student, self.teacher, batch, theirs)
        seen = self.student.see(batch)  # V_S(x)
        with Watch(self.student, batch, looks) as ours:
            spoken = self.student.say(seen, batch)  # L_S(P_S(V_S(x)), t)
        heard, teacher_inner = self._teacher(seen, batch, theirs, looks) if "teacher" in needs else (None, None)
        hidden = Hidden(
            student=spoken,
            teacher=None if heard is None else _compared(heard, batch),
            switch=_compared(self._switch(seen, batch, theirs), batch) if "switch" in needs else None,
            student_head=self.student.head,
            teacher_head=self.shared.head(self.teacher.head)
            if self.teacher is not None and "teacher" in needs
            else None,
            vocabulary=self.vocabulary,
            compared=None
            if "aligned" not in batch or len(batch["aligned"]) == len(spoken)
            else batch["aligned"][:, 0].contiguous(),
            ids=self.shared.ids,
            student_inner=ours.inner(seen, self.shared.students_cut(self.student.head)) if looks else None,
            teacher_inner=teacher_inner,
        )
        return hidden.routes() if finish is None else finish(hidden)

    def _switch(self, seen: Features | None, batch: Batch, theirs: Batch) -> Float[Tensor, "answers hidden"]:
        """L_T(P_T(V_S(x)), t): the visual switch. The teacher speaks about what the student sees."""
        assert self.teacher is not None
        return self.teacher.say(seen if self.bridge is None else self._across(seen, batch, theirs), theirs)

    @torch.no_grad()
    def _teacher(
        self, seen: Features | None, batch: Batch, theirs: Batch, looks: frozenset[Look]
    ) -> tuple[Float[Tensor, "answers hidden"], Inner | None]:
        """L_T(P_T(V_T(x)), t); where V_T is V_S, the teacher need not look again."""
        assert self.teacher is not None
        seen = seen if self.one_encoder and theirs is batch else self.teacher.see(theirs)
        with Watch(self.teacher, theirs, looks) as watch:
            heard = self.teacher.say(seen, theirs)
        return heard, watch.inner(seen, self.shared.teachers_cut(self.teacher.head))

    def _theirs(self, batch: Batch, needs: frozenset[Need]) -> Batch:
        """What the teacher reads: the batch itself where both read the same."""
        if "teacher" not in batch and self._apart and "teacher" in needs:
            raise ValueError(
                f"student and teacher differ in {self._apart[0]}, so each must read its own images and text: collate with "
                'switchkd.pairing.pair_collate.PairCollator, which puts the teacher\'s into batch["teacher"]'
            )
        return batch.get("teacher", batch)

    # ---- the bridge

    def _across(
        self, seen: Features | None, batch: Batch, theirs: Batch
    ) -> Float[Tensor, "*their_tokens their_width"] | None:
        """B(V_S(x)), the student's features as V_T(x) is laid out."""
        if seen is None:
            return None
        assert self.teacher is not None
        assert self.bridge is not None
        family, config = self.teacher.family, self.teacher.model.config
        ours_seen, theirs_seen = self.student.images(batch), self.teacher.images(theirs)
        assert ours_seen is not None
        assert theirs_seen is not None
        maps, sizes = self._maps(self.student, seen, ours_seen), family.shapes(config, theirs_seen)
        if len(maps) != len(sizes):
            raise ValueError(
                f"the student sees {len(maps)} pictures in this batch and the teacher {len(sizes)}: they cut images into tiles "
                "differently. Make both image processors cut as many tiles, or set the method's switch to 0"
            )
        return family.unmaps(config, self.bridge(maps, sizes), theirs_seen)

    @torch.no_grad()
    def fit_bridge(self, batches: Iterable[Batch]) -> float:
        """Fit the bridge to V_T(x) by least squares; returns the share of its variance that the student's features explain."""
        assert self.bridge is not None
        training = self.student.training
        self.student.eval()
        explained = self.bridge.fit(self._examples(batches))
        self.student.train(training)
        return explained

    def _examples(self, batches: Iterable[Batch]) -> Iterator[tuple[list[Grid], list[Grid]]]:
        assert self.teacher is not None
        for batch in batches:
            theirs = batch.get("teacher", batch)
            ours_seen, theirs_seen = self.student.see(batch), self.teacher.see(theirs)
            if ours_seen is not None and theirs_seen is not None:
                yield self._maps(self.student, ours_seen, batch), self._maps(self.teacher, theirs_seen, theirs)

    @staticmethod
    def _maps(pathway: Pathway, seen: Features, batch: Batch) -> list[Grid]:
        return pathway.family.maps(pathway.model.config, seen, batch)

    def train(self, mode: bool = True) -> "Pair":
        """Set the student's mode; the teacher stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


def _compared(hidden: Float[Tensor, "answers hidden"], batch: Batch) -> Float[Tensor, "compared hidden"]:
    """Of the teacher's answer tokens, those that the student has too."""
    return hidden[batch["aligned"][:, 1]] if "aligned" in batch else hidden


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


def check_fit(
    student: Pathway, teacher: Pathway | None, needs: frozenset[Need], *, bridged: bool = False
) -> list[fit.Item]:
    """Raise ValueError, with both numbers, if `teacher` cannot teach `student` along the routes in `needs`.

    Returns:
        What differs so that each model must read its own images and text.
    """
    if not needs - {"student"}:
        return []
    if teacher is None:
        raise ValueError(f"the method needs the routes {', '.join(sorted(needs - LOOKS))}, but there is no teacher")
    items = fit.compare(student.model.config, teacher.model.config)
    fit.refuse(items, needs, bridge=bridged)
    trains_vision: dict[Need, str] = {
        "switch": "the switch trains nothing else: add vision to the stage's `train`, or set the method's switch to 0",
        "features": "its term on V(x) trains nothing else: add vision to the stage's `train`, or choose another method",
    }
    vision = student.part_parameters("vision").values()
    frozen = not any(parameter.requires_grad for parameter in vision)
    for need, why in trains_vision.items():
        if frozen and need in needs:
            raise ValueError(
                f"the student's vision encoder is frozen (0 of {sum(p.numel() for p in vision)} parameters train) and {why}"
            )
    return [item for item in items if item.verdict in ("bridge", "own inputs") and item.what != fit.WIDTH]
