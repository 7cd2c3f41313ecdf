"""Estimates of memory that the doctor asks for again and again of the same models and batches, each made once.

An estimate depends on what it is given and on nothing else. It takes seconds, and most tests of the doctor and of whole runs are about
other checks; those of the estimate itself (tests/train/test_memory.py) ask for it directly.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.utils._pytree import tree_flatten
from transformers import PretrainedConfig

from switchkd.batch import Batch
from switchkd.recipe.schema import Recipe, ResolvedStage
from switchkd.train.memory import Memory


def made_once(estimate: Callable[..., Memory]) -> Callable[..., Memory]:
    """`estimate`, made once of each set of arguments."""
    made: dict[str, Memory] = {}

    def remembered(
        recipe: Recipe,
        stage: ResolvedStage,
        student: PretrainedConfig,
        teacher: PretrainedConfig | None,
        batch: Batch | None = None,
    ) -> Memory:
        if stage.tagged:
            return estimate(recipe, stage, student, teacher, batch)
        key = _key(recipe, stage, student, teacher, batch)
        if key not in made:
            made[key] = estimate(recipe, stage, student, teacher, batch)
        return made[key]

    return remembered


def _key(
    recipe: Recipe,
    stage: ResolvedStage,
    student: PretrainedConfig,
    teacher: PretrainedConfig | None,
    batch: Batch | None,
) -> str:
    """What is told apart: everything but where files lie."""
    nowhere = replace(
        recipe,
        student=replace(recipe.student, path="-"),
        teacher=recipe.teacher and replace(recipe.teacher, path="-"),
        train=replace(recipe.train, output="-"),
        data=replace(recipe.data, train="-", image_root=None),
        evaluate=None,
    )
    digest = hashlib.blake2b()
    leaves, shape = tree_flatten(None if batch is None else batch._replace(keys=tuple("-" for _ in batch.keys)))
    for part in (nowhere, replace(stage, data="-"), *map(_written, (student, teacher)), shape, *leaves):
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {part.device} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().float().contiguous().numpy().tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def _written(config: PretrainedConfig | None) -> object:
    if config is None:
        return None
    entries = {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}
    return config._attn_implementation, sorted(map(repr, entries.items()))
