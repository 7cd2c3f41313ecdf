"""The list of fields says what the code says."""

import re
from dataclasses import fields
from pathlib import Path

from switchkd.cli import main
from switchkd.methods import METHODS
from switchkd.names import VisualWeights
from switchkd.recipe.data_section import Video
from switchkd.recipe.field_list import as_markdown, sections
from switchkd.recipe.schema import Data, LearningRates, LoRA, Recipe, Stage, Student, Train, WeightedData

PAGE = Path(__file__).parents[2] / "docs" / "fields.md"


def test_every_section_is_there_with_every_field():
    listed = {section.name: [one.name for one in section.fields] for section in sections()}
    expected = {"": Recipe, "student": Student, "student.lora": LoRA, "data": Data, "data.train": WeightedData}
    expected |= {"data.video": Video, "method.weights": VisualWeights}
    expected |= {"train": Train, "train.learning_rates": LearningRates, "stages[n]": Stage}
    expected |= {f"method: {name}": method for name, method in METHODS.items()}
    assert {name: listed[name] for name in expected} == {
        n: [one.name for one in fields(kind)] for n, kind in expected.items()
    }
    assert set(listed) - set(expected) == {
        "teacher",
        "evaluate",
        "pair",
        "data.validation",
        "on_policy",
        "teachers.NAME",
    }


def test_every_field_and_section_has_a_meaning():
    assert [(section.name, one.name) for section in sections() for one in section.fields if not one.meaning] == []
    assert [section.name for section in sections() if not section.meaning] == []


def test_the_page_is_what_the_code_gives():
    assert PAGE.read_text() == as_markdown(), "write it anew: python -m switchkd.recipe.field_list > docs/fields.md"


def test_types_and_defaults_are_in_the_words_of_a_recipe():
    by_name = {
        f"{section.name}.{one.name}": (one.type, one.default) for section in sections() for one in section.fields
    }
    assert by_name["train.save_total_limit"] == ("whole number or none", "2")
    assert by_name["train.output"] == ("text", "")
    assert by_name["train.bf16"] == ("true or false", "false")
    assert by_name["train.report_to"] == ("list of text", "[tensorboard]")
    assert by_name["pair.bridge"] == ("auto, always, none", "auto")
    assert by_name[".stages"] == ("list of section", "[{name: train}]")


def test_the_command_lists_them_in_narrow_terminals_too(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["train", "--fields"]) == 0
    shown = capsys.readouterr().out
    assert "  max_steps: whole number = -1\n      Optimizer steps;" in shown
    prose = [line for line in shown.splitlines() if not re.match(r"  \w+: ", line)]
    assert max(map(len, prose)) <= 60


def test_train_without_a_recipe_says_what_to_do(capsys):
    assert main(["train"]) == 2
    assert "train needs RECIPE.yaml" in capsys.readouterr().err
