"""A recipe that is made in Python is held to what one in a file is held to, by the same check."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from switchkd import (
    EMKD,
    KD,
    METHODS,
    SFT,
    AlignKD,
    AlignTI,
    BiLD,
    CompoDistill,
    FeatureKD,
    LLaVAKD,
    LLaVAMoD,
    Recipe,
    SwitchKD,
)
from switchkd.methods import Method
from switchkd.recipe.parsing import RecipeError
from switchkd.recipe.schema import (
    Data,
    Evaluate,
    LearningRates,
    LoRA,
    Pairing,
    Stage,
    Student,
    Teacher,
    Train,
    build_recipe,
)

#: The tests' own check of types comes before the one that users have.
pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def recipe(**changes):
    sections = {
        "student": Student("s"),
        "teacher": Teacher("t"),
        "method": SwitchKD(),
        "data": Data("d"),
        "train": Train("o"),
    }
    return Recipe(**sections | changes)


FAULTS = {
    "a word for a number": (lambda: Train("o", learning_rate="x"), "Train: learning_rate: must be a number, got 'x'"),
    "a fraction for a whole number": (lambda: Train("o", max_steps=1.5), "Train: max_steps: must be a whole number, got 1.5"),
    "not finite": (lambda: Train("o", weight_decay=float("nan")), "Train: weight_decay: must be finite, got nan"),
    "a number for a switch": (lambda: Train("o", bf16=1), "Train: bf16: must be true or false, got 1"),
    "nothing for a name": (lambda: Train(None), "Train: output: must be text, got None"),
    "another choice": (lambda: Train("o", lr_scheduler_type="cosin"), "Train: lr_scheduler_type: must be one of .*did you mean `cosine`"),
    "torch's own name": (lambda: Student("s", dtype=torch.bfloat16), "Student: dtype: must be one of .*did you mean `bfloat16`"),
    "in a section of a section": (lambda: Student("s", lora=LoRA(r="many")), "LoRA: r: must be a whole number, got 'many'"),
    "a rate of a part": (lambda: LearningRates(vision=[1]), r"LearningRates: vision: must be a number, got \[1\]"),
    "columns": (lambda: Data("d", columns=["q"]), r"Data: columns: must be a mapping, got \['q'\]"),
    "a share": (lambda: Evaluate("d", max_bad_fraction="half"), "Evaluate: max_bad_fraction: must be a number"),
    "a bridge": (lambda: Pairing(bridge=True), "Pairing: bridge: must be one of auto, always, none, got True"),
    "a part": (lambda: Stage("a", train=("vision", "ears")), "Stage: train.1: must be one of vision, projector, language"),
    "a teacher": (lambda: Teacher(path=3), "Teacher: path: must be text, got 3: put it in quotes"),
    "a section that is text": (lambda: recipe(student="s"), "Recipe: student: must be a section with fields of its own, got 's'"),
    "the class of a method": (lambda: recipe(method=SwitchKD), r"Recipe: method: .* got the class SwitchKD: make one of it, SwitchKD\(…\)"),
    "a method that nobody knows": (lambda: recipe(method="switch"), "Recipe: method.name: 'switch' is unknown; did you mean `switch_kd`"),
    "stages": (lambda: recipe(stages=(Student("s"),)), "Recipe: stages.0: must be a section"),
}  # fmt: skip
KNOBS = {
    KD: "beta",
    BiLD: "top_k",
    SwitchKD: "align",
    FeatureKD: "features",
    LLaVAKD: "visual",
    LLaVAMoD: "mimic",
    AlignKD: "top",
    EMKD: "matched",
    CompoDistill: "looks",
    AlignTI: "layer",
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_a_file_may_not_say_is_refused_when_it_is_made(case):
    make, message = FAULTS[case]
    with pytest.raises(RecipeError, match=f"^{message}"):
        make()


@pytest.mark.parametrize("method", KNOBS, ids=lambda method: method.name)
def test_knobs_of_methods_are_looked_at(method):
    with pytest.raises(RecipeError, match=f"^{method.__name__}: {KNOBS[method]}: must be a (whole )?number, got 'x'"):
        method(**{KNOBS[method]: "x"})


def test_every_method_with_knobs_is_among_them():
    assert {*KNOBS, SFT} == set(METHODS.values())


def test_the_words_are_those_for_a_file():
    def said(make):
        with pytest.raises(RecipeError) as caught:
            make()
        return str(caught.value)

    tree = {"student": {"path": "s"}, "method": "sft", "data": {"train": "d"}, "train": {"output": "o"}}
    for section, name, value in [
        ("train", "learning_rate", "x"),
        ("train", "lr_scheduler_type", "cosin"),
        ("data", "rows", "few"),
        ("train", "max_grad_norm", "inf"),
    ]:
        changed = tree | {section: tree[section] | {name: value}}
        in_file = said(lambda changed=changed: build_recipe(changed, "file"))
        kind = {"train": Train, "data": Data}[section]
        first = {"train": {"output": "o"}, "data": {"train": "d"}}[section]
        in_python = said(lambda kind=kind, first=first, name=name, value=value: kind(**first, **{name: value}))
        assert in_file.replace(f"file: {section}.", "") == in_python.replace(f"{kind.__name__}: ", "")


def test_what_a_file_may_say_is_understood():
    made = Train(
        Path("runs") / "a",
        learning_rate="2e-5",
        max_steps=np.int64(3),
        weight_decay=np.float32(0.5),
        report_to=["tensorboard"],
    )
    assert made == Train("runs/a", learning_rate=2e-5, max_steps=3, weight_decay=0.5, report_to=("tensorboard",))
    assert [type(value) for value in (made.output, made.max_steps, made.weight_decay)] == [str, int, float]
    assert Data([Path("a"), "b"]).train == ("a", "b")
    assert Student("s", lora=True).lora == LoRA()
    assert recipe(method="kd", stages=[{"name": "one", "method": "sft"}]) == recipe(
        method=KD(), stages=(Stage("one", method=SFT()),)
    )


@dataclass(frozen=True)
class Unchecked(Method):
    """A method of another package, which does not look at its knobs."""

    name: ClassVar[str] = "unchecked"
    strength: float = 1.0

    def token_terms(self, logits):
        return {}


def test_the_knobs_of_a_method_from_elsewhere_are_looked_at_by_the_recipe():
    with pytest.raises(RecipeError, match=r"Recipe: method.strength: must be a number, got 'x'"):
        recipe(method=Unchecked("x"))
    assert recipe(method=Unchecked(2)).method == Unchecked(2.0)

    class Plain(Unchecked.__base__):
        needs = frozenset({"student"})
        token_terms = Unchecked.token_terms

    with pytest.raises(RecipeError, match="Recipe: method: must be a dataclass, whose fields are saved with a run"):
        recipe(method=Plain())
