"""An estimate is made anew for everything it depends on, and once for what it does not."""

from dataclasses import replace

import pytest
from estimates import made_once
from tiny_models import tiny_batch, tiny_llava

from switchkd.methods import KD
from switchkd.recipe.schema import Data, Recipe, Student, Teacher, Train

CONFIG = tiny_llava().config
RECIPE = Recipe(Student("a"), KD(), Data("rows.json"), Train("runs/a"), Teacher("b"))
BATCH = tiny_batch()


def arguments(recipe=RECIPE, student=CONFIG, teacher=CONFIG, batch=BATCH):
    return recipe, recipe.resolved_stages()[0], student, teacher, batch


def longer(batch):
    tokens = batch.student.tokens.clone()
    tokens[0, 0] += 1
    return batch._replace(student=batch.student._replace(tokens=tokens))


@pytest.mark.parametrize(
    ("other", "calls"),
    [
        (arguments(), 1),
        (arguments(replace(RECIPE, student=Student("elsewhere"), train=Train("runs/elsewhere"))), 1),
        (arguments(batch=BATCH._replace(keys=tuple(f"{key}0" for key in BATCH.keys))), 1),
        (arguments(replace(RECIPE, method=KD(beta=1.0))), 2),
        (arguments(replace(RECIPE, train=Train("runs/a", bf16=True))), 2),
        (arguments(replace(RECIPE, student=Student("a", dtype="bfloat16"))), 2),
        (arguments(student=tiny_llava(hidden=48).config), 2),
        (arguments(teacher=None), 2),
        (arguments(batch=longer(BATCH)), 2),
        (arguments(batch=BATCH.without_answers()), 2),
    ],
    ids=["the same", "paths", "keys", "method", "precision", "weights", "model", "no teacher", "a token", "answers"],
)
def test_what_is_told_apart(other, calls):
    made = []
    estimate = made_once(lambda *given: made.append(given) or len(made))
    first, second = estimate(*arguments()), estimate(*other)
    assert len(made) == calls
    assert (first == second) == (calls == 1)
