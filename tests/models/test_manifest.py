"""A finished student is checked against its checksums wherever it is opened."""

import shutil

import pytest
from run_files import write_data, write_model

from switchkd import cli
from switchkd.evaluate import evaluate_model
from switchkd.manifest import write_manifest
from switchkd.methods import KD
from switchkd.models import load_pathway
from switchkd.recipe.schema import Data, Recipe, Student, Teacher, Train
from switchkd.train.stage import open_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    write_model(folder / "model", seed=1)
    write_data(folder / "data" / "test.json", 2)
    write_manifest(folder / "model", without=("README.md",))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved / "model", tmp_path / "student")


def flip(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def as_teacher(saved, folder):
    recipe = Recipe(
        Student(str(saved / "model")), KD(), Data(str(saved / "data" / "test.json")), Train("run"), Teacher(str(folder))
    )
    open_run(recipe)


def as_start(saved, folder):
    recipe = Recipe(
        Student(str(folder)), KD(), Data(str(saved / "data" / "test.json")), Train("run"), Teacher(str(saved / "model"))
    )
    open_run(recipe)


PLACES = {
    "evaluate": lambda saved, folder: evaluate_model(folder, saved / "data" / "test.json"),
    "start": as_start,
    "teacher": as_teacher,
    "pathway": lambda saved, folder: load_pathway(folder),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_file_that_changed_is_an_error_wherever_the_student_is_opened(saved, copy, place, name):
    flip(copy / name)
    with pytest.raises(
        ValueError, match=rf"student is not what was saved: {name} does not match its checksum\. Copy it again"
    ):
        PLACES[place](saved, copy)


def test_chat_refuses_it_too(copy, capsys):
    flip(copy / "model.safetensors")
    assert cli.main(["chat", str(copy), "--question", "What?"]) == 1
    assert "model.safetensors does not match its checksum" in capsys.readouterr().err


def test_a_file_that_is_missing_or_would_be_loaded_besides_is_an_error(copy):
    (copy / "chat_template.jinja").rename(copy / "aside")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is missing"):
        load_pathway(copy)
    (copy / "aside").rename(copy / "chat_template.jinja")
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"adapter_config\.json is not named in manifest\.json"):
        load_pathway(copy)


def test_notes_beside_it_and_a_meant_change_are_no_damage(copy):
    for name in ("README.md", "results.json", "notes.txt"):
        (copy / name).write_text("mine")
    load_pathway(copy)
    flip(copy / "model.safetensors")
    (copy / "manifest.json").unlink()
    load_pathway(copy)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"model.safetensors": 7}', '{"../x": "y"}'])
def test_a_manifest_of_another_shape_is_an_error_that_names_it(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not what was saved: manifest\.json.* remove .*manifest\.json"):
        load_pathway(copy)
