"""The teachers of a run, of which those of the stage that runs have their weights in memory."""

import gc
import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from switchkd.models import Pathway
from switchkd.models.teacher_head import TeacherHead
from switchkd.recipe.schema import ResolvedStage, Teacher
from switchkd.train.open_teacher import KnownTeacher

_log = logging.getLogger(__name__)
#: Gives the weights of a teacher; its head alone where the second is true.
Load = Callable[[Teacher, bool], Pathway | TeacherHead]


class Teachers:
    """What is known of each teacher that a stage learns from, and the weights of those whose stage runs.

    Args:
        known: each of them, in the order of their stages.
        load: gives the weights of one.
    """

    def __init__(self, known: Iterable[KnownTeacher], load: Load) -> None:
        self._known = {one.section: one for one in known}
        self._load = load
        self._models: dict[tuple[Teacher, bool], Pathway | TeacherHead] = {}

    def __iter__(self) -> Iterator[KnownTeacher]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def of(self, stage: ResolvedStage) -> KnownTeacher | None:
        """What is known of the teacher of all rows of a stage; None for a stage without one, or with several by tags."""
        return None if stage.teacher is None else self._known[stage.teacher]

    def by_tag(self, stage: ResolvedStage) -> dict[str, KnownTeacher]:
        """What is known of each teacher of a stage, by its tag."""
        return {tag: self._known[one.teacher] for tag, one in stage.by_teacher.items() if one.teacher is not None}

    def weights_for(self, stage: ResolvedStage) -> dict[str, Pathway | TeacherHead]:
        """The weights of a stage's teachers, as far as its method needs them, by their tags; empty for a stage without any.

        They stay until a stage needs others, and are let go of before those are loaded: nothing else may hold them then.
        """
        wanted = {tag: (known.section, _head_alone(known, stage)) for tag, known in self.by_tag(stage).items()}
        self._release([one for one in self._models if one not in wanted.values()])
        for one in wanted.values():
            if one not in self._models:
                self._models[one] = self._load(*one)
        return {tag: self._models[one] for tag, one in wanted.items()}

    def _release(self, models: list[tuple[Teacher, bool]]) -> None:
        if not models:
            return
        for one in models:
            _log.info("the weights of teacher %s are let go of", one[0].path)
            del self._models[one]
        gc.collect()  # a trainer that has ended refers to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _head_alone(known: KnownTeacher, stage: ResolvedStage) -> bool:
    """Whether a cache has all that the stage asks of the teacher besides its head."""
    return known.store is not None and not stage.method.needs - {"student", "teacher"}
