"""What of a recipe cannot go with the way in which rows are read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from switchkd.recipe.data_section import Data, data_weights
from switchkd.recipe.field_checks import require
from switchkd.recipe.training import Train

if TYPE_CHECKING:
    from switchkd.recipe.schema import ResolvedStage


def check_rows_fit(data: Data, train: Train, stages: Sequence["ResolvedStage"], *, on_policy: bool) -> None:
    """Raise ValueError for fields that contradict one another.

    Args:
        data: of the recipe.
        train: of the recipe.
        stages: of the recipe.
        on_policy: whether the student writes answers itself.
    """
    teachers = [one.teacher for stage in stages for one in stage.by_teacher.values()]
    cached = any(teacher is not None and teacher.cache is not None for teacher in teachers)
    for name, given in (("data.packing", data.packing), ("data.streaming", data.streaming)):
        require(
            not (on_policy and given),
            f"on_policy is given and {name} is true: answers that the student writes have lengths that no batch was made for; keep one of "
            "the two",
        )
    require(
        not (cached and data.streaming),
        "teacher.cache is given and data.streaming is true: a cache is filled and checked row by row of an index, and a stream has none; "
        "keep one of the two",
    )
    require(
        not (cached and on_policy),
        "on_policy and teacher.cache are both given: a cache has what the teacher says of the data's answers, and nothing of those that "
        "the student will write; keep one of the two",
    )
    require(
        not (data.packing and train.group_by_length),
        "data.packing and train.group_by_length are both true: packed rows are all of about one length already, so keep one of the two",
    )
    if not data.streaming:
        return
    for name, given in (("data.packing", data.packing), ("train.group_by_length", train.group_by_length)):
        require(
            not given,
            f"data.streaming and {name} are both true: {name} needs the lengths of all rows before the first is read",
        )
    require(
        train.arguments.get("save_strategy") != "epoch",
        "data.streaming is true and train.arguments.save_strategy is epoch: a stream has no epochs that are counted; set train.save_steps",
    )
    for stage in stages:
        require(
            stage.max_steps > 0,
            f"data.streaming is true, and stage {stage.name} counts epochs ({stage.num_train_epochs:g}): nobody knows how many rows "
            "a stream has, so say when to end: set train.max_steps",
        )
        heavy = [name for name, weight in data_weights(stage.data) if weight != 1]
        require(
            not heavy,
            f"data.streaming is true, and stage {stage.name} gives a weight to {', '.join(heavy)}: weights count rows that are known; "
            "leave them out, or name a file several times",
        )
