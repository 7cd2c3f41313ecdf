"""A saved data set opens the files of its own folder alone."""

import json

import pytest
from datasets import Dataset

from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows


@pytest.fixture
def saved(tmp_path):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    for name in ("mine", "theirs"):
        Dataset.from_list([{"id": name, "messages": turns}]).save_to_disk(tmp_path / name)
    return tmp_path / "mine"


def test_it_is_read(saved):
    assert load_rows(saved)["id"][:] == ["mine"]


@pytest.mark.parametrize("form", ["relative", "absolute"])
def test_a_list_of_files_that_leads_outside_is_refused(saved, form):
    state = json.loads((saved / "state.json").read_text())
    other = saved.parent / "theirs" / state["_data_files"][0]["filename"]
    state["_data_files"][0]["filename"] = str(other) if form == "absolute" else f"../theirs/{other.name}"
    (saved / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=r"state\.json names '.*theirs.*', a file outside of its folder"):
        load_rows(saved)


@pytest.mark.parametrize("text", ["[]", "7", "{", "{}", '{"_data_files": [7]}', '{"_data_files": [{"filename": 7}]}'])
def test_a_list_of_files_of_another_shape_names_the_folder(saved, text):
    (saved / "state.json").write_text(text)
    with pytest.raises(DataError, match="mine: not a readable saved data set"):
        load_rows(saved)
