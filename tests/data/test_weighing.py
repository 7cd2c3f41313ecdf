"""Weights of data: how often their rows are seen in an epoch."""

import json
from collections import Counter

import pytest
from run_files import write_run

from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.weighing import weigh
from switchkd.recipe.schema import WeightedData, data_weights, load_recipe, recipe_to_dict
from switchkd.train.stage import index_rows, open_run


def write(folder, name, rows):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
    file = folder / f"{name}.json"
    file.write_text(json.dumps([{"id": f"{name}{number}", "conversations": turns} for number in range(rows)]))
    return str(file)


def weighed(*data, rows=None, seed=0):
    rows = load_rows([name for name, _ in data]) if rows is None else rows
    return weigh(rows, data, seed=seed)


@pytest.mark.parametrize(
    ("weight", "copies"), [(2, {2: 10}), (0.5, {1: 5}), (2.3, {2: 7, 3: 3}), (1, {1: 10}), (0.05 + 0.01, {1: 1})]
)
def test_a_row_is_there_as_often_as_its_data_weigh(tmp_path, weight, copies):
    a, b = write(tmp_path, "a", 10), write(tmp_path, "b", 3)
    counts = Counter(weighed((a, weight), (b, 1))["id"])
    assert Counter(counts[f"a{number}"] for number in range(10) if counts[f"a{number}"]) == copies
    assert [counts[f"b{number}"] for number in range(3)] == [1, 1, 1]


def test_what_a_fraction_takes_goes_by_the_seed(tmp_path):
    a = write(tmp_path, "a", 40)
    taken = [weighed((a, 0.25), seed=seed)["id"][:] for seed in (0, 0, 1)]
    assert taken[0] == taken[1] != taken[2]
    assert len(set(taken[0])) == 10


def test_shards_of_a_folder_weigh_together(tmp_path):
    (tmp_path / "shards").mkdir()
    a = write(tmp_path, "a", 2)
    for name in ("b", "c"):
        write(tmp_path / "shards", name, 4)
    counts = Counter(weighed((str(tmp_path / "shards"), 3), (a, 1))["id"])
    assert counts == {f"{name}{number}": 3 for name in "bc" for number in range(4)} | {"a0": 1, "a1": 1}


def test_what_is_named_twice_has_both_weights(tmp_path):
    """As where a glob takes a file with others, and it is named once more to count more."""
    a, b = write(tmp_path, "a", 4), write(tmp_path, "b", 4)
    counts = Counter(weighed((str(tmp_path / "*.json"), 1), (b, 2.5))["id"])
    assert sum(counts.values()) == 4 + 4 + 10
    assert counts["b0"] == 1
    assert sorted(count for name, count in counts.items() if "#" in name) == [2, 2, 3, 3]
    assert weighed((a, 1), (b, 1))["id"][:] == load_rows([a, b])["id"][:]


def test_rows_that_cannot_be_used_are_not_counted(tmp_path):
    a, b = write(tmp_path, "a, row 3", 4), write(tmp_path, "b", 4)
    rows = load_rows([a, b]).select([1, 2, 5])
    assert weighed((a, 1), (b, 2), rows=rows)["id"][:] == ["a, row 31", "a, row 32", "b1", "b1"]


def test_a_weight_that_leaves_no_row_is_an_error(tmp_path):
    a = write(tmp_path, "a", 4)
    with pytest.raises(DataError, match=r"weight 0.1 of .*a.json leaves none of its 4 rows"):
        weighed((a, 0.1))


def test_weights_of_a_recipe_reach_the_rows_of_its_stage(tmp_path):
    file = write_run(tmp_path)
    recipe = load_recipe(file)
    data = recipe.data.train
    file.write_text(file.read_text().replace(f"train: {data}", f"train: [{{path: {data}, weight: 2}}]"))
    weighted = load_recipe(file)
    assert weighted.data.train == (WeightedData(data, 2.0),)
    assert recipe_to_dict(weighted)["data"]["train"] == [{"path": data, "weight": 2.0, "teacher": None}]
    once, twice = (
        index_rows(open_run(one), one.resolved_stages()[0], tmp_path / str(number))["id"][:]
        for number, one in enumerate((recipe, weighted))
    )
    assert twice == [name for name in once for _ in range(2)]


def test_a_stage_has_weights_of_its_own(tmp_path):
    file = write_run(tmp_path)
    file.write_text(file.read_text() + "stages: [{name: a, data: {path: x.json, weight: 0.5}}, {name: b}]\n")
    first, second = load_recipe(file).resolved_stages()
    assert data_weights(first.data) == [("x.json", 0.5)]
    assert data_weights(second.data) == [(load_recipe(file).data.train, 1.0)]
