"""The metadata of a student's card; tests/test_distill.py holds what stands in it."""

import pytest
from huggingface_hub import ModelCard

from switchkd.train.model_card import add_results, model_card


@pytest.fixture
def student(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "README.md").write_text("---\nlicense: apache-2.0\n---\nA small model.\n")
    return tmp_path / "run" / "student"


def card(**changes):
    told = {
        "recipe_yaml": "a: 1",
        "student": "start",
        "teachers": ["org/teacher"],
        "methods": ["sft"],
        "data": ["org/data", "d.json"],
    }
    return ModelCard(model_card(**(told | changes)))


def test_names_of_the_hub_are_linked_and_paths_are_not(student):
    data = card().data
    assert (data.base_model, data.datasets, data.license) == (["org/teacher"], ["org/data"], "apache-2.0")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-text-to-text")
    bare = card(student="run/student", teachers=[], data=["./d", "/data/d.json"]).data
    assert (bare.base_model, bare.datasets, bare.license) == (None, None, None)


def test_results_stand_in_the_text_and_in_the_metadata_once(student):
    (student / "README.md").write_text(str(card()))
    for score in (40.0, 50.126):
        add_results(
            student, {"count|": score, "all questions": 30.0}, data="data/test.json", baseline=("SFT", {"count|": 45.0})
        )
    written = ModelCard.load(student / "README.md")
    assert written.text.count("## Results") == 1
    assert "| count\\| | 50.1 | +5.1 |\n| all questions | 30.0 | – |\n" in written.text
    assert written.data.base_model == ["org/teacher"]
    assert written.data.model_name == "run"
    assert "Exact match in percent on `data/test.json`" in written.text
    found = [(r.dataset_name, r.metric_type, r.metric_name, r.metric_value) for r in written.data.eval_results]
    assert found == [("test.json", "exact_match", "count|", 50.13), ("test.json", "exact_match", "all questions", 30.0)]


def test_results_name_what_they_were_scored_by(student):
    (student / "README.md").write_text(str(card()))
    add_results(student, {"all questions": 30.0}, data="d.json", metric="anls")
    written = ModelCard.load(student / "README.md")
    assert "Score in percent, by the metric anls, on `d.json`" in written.text
    assert [one.metric_type for one in written.data.eval_results] == ["anls"]
