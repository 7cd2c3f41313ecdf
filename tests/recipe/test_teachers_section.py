"""Recipes with several teachers of which each row names one."""

import pytest

from switchkd.recipe.schema import (
    Data,
    Recipe,
    Student,
    Teacher,
    Train,
    WeightedData,
    build_recipe,
    load_recipe,
    save_recipe,
)

ONE, OTHER = Teacher("t"), Teacher("u", device="cpu")
BOTH = {"ocr": {"path": "t"}, "general": {"path": "u", "device": "cpu"}}


def recipe(flags=(), **sections):
    tree = {
        "student": {"path": "s"},
        "method": "kd",
        "data": {"train": "d"},
        "train": {"output": "o"},
        "teachers": BOTH,
    }
    return build_recipe(tree | sections, "test", flags)


def test_a_stage_has_all_of_them_where_its_method_has_a_teacher_and_names_none():
    stages = [{"name": "labels", "method": "sft"}, {"name": "one", "teacher": {"path": "v"}}, {"name": "both"}]
    made = recipe(stages=stages)
    labels, one, both = made.resolved_stages()
    assert (labels.teacher, labels.tagged, labels.by_teacher) == (None, {}, {})
    assert (one.teacher, one.tagged, list(one.by_teacher)) == (Teacher("v"), {}, ["teacher"])
    assert (both.teacher, both.tagged) == (None, {"ocr": ONE, "general": OTHER})
    assert {tag: stage.teacher for tag, stage in both.by_teacher.items()} == {"ocr": ONE, "general": OTHER}
    assert made.teacher_sections == {"teachers.ocr": ONE, "teachers.general": OTHER, "stages.1.teacher": Teacher("v")}
    assert made.last_teacher == ONE


def test_it_is_saved_and_read_back_and_changed_by_flags(tmp_path):
    data = {"train": [{"path": "a.json", "teacher": "ocr"}, "b.json"]}
    made = recipe(["--teachers.ocr.path", "w", "--teachers.third.path", "x"], data=data)
    assert {tag: teacher.path for tag, teacher in made.teachers.items()} == {"ocr": "w", "general": "u", "third": "x"}
    assert made.data.train == (WeightedData("a.json", teacher="ocr"), "b.json")
    save_recipe(made, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == made


def test_it_can_be_made_in_python():
    made = Recipe(Student("s"), recipe().method, Data("d"), Train("o"), teachers={"ocr": ONE, "general": OTHER})
    assert made == recipe()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"path": "t"}}, r"teacher and teachers are both given \(ocr, general\)"),
        ({"teachers": {"a b": {"path": "t"}}}, "a name is at most 60 letters, digits, - and _, because it names files, got 'a b'"),
        ({"teachers": {"x" * 61: {"path": "t"}}}, "a name is at most 60 letters"),
        ({"teachers": {"a": {"path": "t"}, "b": {"path": "t"}}}, r"teachers\.a and teachers\.b are one model, t"),
        ({"teachers": {"a": {"dtype": "float32"}}}, r"test: teachers\.a: needs `path`"),
        ({"teachers": {"a": {"path": "t", "devise": "cpu"}}}, r"`teachers\.a` has no `devise`; did you mean `device`"),
        ({"data": {"train": [{"path": "d", "teacher": "orc"}]}}, r"data\.train says that rows are taught by 'orc'.*did you mean `ocr`"),
        (
            {"data": {"train": "d", "validation": {"path": "v", "teacher": "x"}}},
            r"data\.validation says that rows are taught by 'x', and the names in `teachers` are ocr, general",
        ),
        (
            {"stages": [{"name": "s", "data": {"path": "d", "teacher": "x"}}]},
            r"stages\.0\.data says that rows are taught by 'x'",
        ),
        (
            {"teachers": {}, "teacher": {"path": "t"}, "data": {"train": {"path": "d", "teacher": "ocr"}}},
            "taught by 'ocr', and the names in `teachers` are none: add `teachers: {NAME: {path: …}}`",
        ),
        (
            {"teachers": {"a": {"path": "t", "cache": "c"}, "b": {"path": "u", "cache": "c"}}},
            r"two teachers keep what they say in one folder, teacher\.cache c: t and u",
        ),
        (
            {"teachers": {"a": {"path": "t", "cache": "c"}, "b": {"path": "u"}}, "method": "feature_kd"},
            "method feature_kd of stage train compares what is inside the teacher",
        ),
        (
            {"teachers": {"a": {"path": "t", "cache": "c"}}, "on_policy": True},
            r"on_policy and teacher\.cache are both given",
        ),
        (
            {"teachers": {"a": {"path": "t", "device": "cpu", "quantization": "8bit"}}},
            r"teachers\.a\.device is cpu and teachers\.a\.quantization is 8bit",
        ),
        ({"teachers": {}}, "method kd needs a teacher, and the recipe names none"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        recipe(**sections)
