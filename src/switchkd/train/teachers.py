"""The teachers of a run, of which one at most has its weights in memory."""

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
    """What is known of each teacher that a stage learns from, and the weights of the one whose stage runs.

    Args:
        known: each of them, in the order of their stages.
        load: gives the weights of one.
    """

    def __init__(self, known: Iterable[KnownTeacher], load: Load) -> None:
        self._known = {one.section: one for one in known}
        self._load = load
        self._held: tuple[Teacher, bool] | None = None
        self._model: Pathway | TeacherHead | None = None

    def __iter__(self) -> Iterator[KnownTeacher]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def of(self, stage: ResolvedStage) -> KnownTeacher | None:
        """What is known of a stage's teacher; None for a stage without one."""
        return None if stage.teacher is None else self._known[stage.teacher]

    def weights_for(self, stage: ResolvedStage) -> Pathway | TeacherHead | None:
        """The weights of a stage's teacher, as far as its method needs them; None for a stage without one.

        They stay until a stage needs others, and are let go of before those are loaded: nothing else may hold them then.
        """
        known = self.of(stage)
        wanted = None if known is None else (known.section, _head_alone(known, stage))
        if wanted != self._held:
            self._release()
            if wanted is not None:
                self._model = self._load(*wanted)
            self._held = wanted
        return self._model

    def _release(self) -> None:
        if self._held is None:
            return
        _log.info("the weights of teacher %s are let go of", self._held[0].path)
        self._held, self._model = None, None
        gc.collect()  # a trainer that has ended refers to itself
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _head_alone(known: KnownTeacher, stage: ResolvedStage) -> bool:
    """Whether a cache has all that the stage asks of the teacher besides its head."""
    return known.store is not None and not stage.method.needs - {"student", "teacher"}
