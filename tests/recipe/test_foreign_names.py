"""Names of other tools lead to ours, and guesses are made only where they are near."""

import re
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
from transformers import TrainingArguments

from switchkd.methods import METHODS, Method
from switchkd.recipe.foreign_names import FOREIGN
from switchkd.recipe.parsing import RecipeError
from switchkd.recipe.schema import Recipe, build_recipe
from switchkd.recipe.trainer_arguments import OURS, REFUSED


def tree(**more):
    plain = {"student": {"path": "a"}, "teacher": {"path": "b"}, "data": {"train": "c"}, "train": {"output": "d"}}
    return plain | {"method": {"name": "switch_kd"}, "evaluate": {"data": "e"}} | more


def refused(section, key, value=1):
    recipe = tree()
    if section is None:
        recipe[key] = value
    else:
        recipe[section] = recipe[section] | {key: value}
    with pytest.raises(RecipeError) as caught:
        build_recipe(recipe, "recipe.yaml")
    return str(caught.value)


def names_of(kind, at=""):
    """The dotted names of all fields below a dataclass, sections included; a method's are those of any method."""
    for option in get_args(kind) or (kind,):
        for choice in METHODS.values() if option is Method else (option,):
            if is_dataclass(choice):
                hints = get_type_hints(choice)
                for one in fields(choice):
                    yield at + one.name
                    yield from names_of(hints[one.name], f"{at}{one.name}.")
    if kind is Method:
        yield f"{at}name"


REAL = set(names_of(Recipe))
REAL |= {f"train.arguments.{one.name}" for one in fields(TrainingArguments) if one.name not in REFUSED | OURS}
#: A list of sections is told by its first.
REAL |= {f"stages.{name.removeprefix('stages.')}" for name in REAL if name.startswith("stages.")}


def test_there_are_enough_names_and_none_of_ours_among_those_of_a_section():
    assert len(FOREIGN) >= 40
    assert {"student.lora.r", "method.align", "method.name", "stages.train", "train.learning_rates.vision"} <= REAL


@pytest.mark.parametrize("name", FOREIGN)
def test_a_name_leads_to_fields_that_are_there(name):
    said = FOREIGN[name]
    targets = re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)", said)
    assert targets or said.startswith(("nothing", "a setting of the launcher", "the variable"))
    assert [target for target in targets if target not in REAL] == []
    message = refused(None, name)
    assert f"has no `{name}`: here that is {said}" in message


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("train", "lr", "here that is `train.learning_rate`"),
        ("method", "tau", "here that is `method.temperature`"),
        ("student", "model_name_or_path", "`student.path`, and `teacher.path`"),
        ("train", "early_stopping_patience", "here that is `train.early_stopping`"),
        ("train", "adam_beta2", "here that is `train.arguments.adam_beta2`"),
        ("train", "fsdp", "accelerate launch --config_file recipes/accelerate/fsdp2.yaml"),
        # near in its own section, before one of another
        ("train", "max_step", "did you mean `max_steps`?"),
        ("evaluate", "batch_sizes", "did you mean `batch_size`?"),
        ("data", "max_pixel", "did you mean `max_pixels`?"),
        # of another section: the same name, or one that is near
        ("train", "max_length", "did you mean `data.max_length`?"),
        ("train", "temperature", "did you mean `method.temperature`?"),
        ("student", "max_pixel", "did you mean `data.max_pixels`?"),
        (None, "temperatur", "did you mean `method.temperature`?"),
        # nothing is near
        ("train", "colour", "(it has: output, num_train_epochs"),
        ("student", "banana", "(it has: path, dtype"),
        ("method", "lamda", "(it has: align, switch"),
    ],
)
def test_what_is_said_of_a_name(section, key, said):
    message = refused(section, key)
    assert said in message
    assert ("did you mean" in message) == ("did you mean" in said)
