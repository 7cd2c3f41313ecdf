"""Pictures of photographs and the questions about them: exact truth, disjoint splits, the same for one seed."""

import json
import shutil
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest
from labelled_photos import cells_in, solve_grid, write_photos_folder
from PIL import Image

from switchkd.data.errors import DataError
from switchkd.world.grid_questions import GRID_KINDS
from switchkd.world.photo_world import blind_score, check_disjoint, grid_samples, hold_splits, read_rows, write_photos
from switchkd.world.photographs import load_photographs

#: Highest share one answer may have within its kind, for four classes.
BLIND = {
    "perception": 0.32,
    "count": 0.5,
    "relation": 0.42,
    "comparison": 0.32,
    "empty": 0.56,
    "existence": 0.56,
    "hallucination": 0.56,
    "caption": 0.15,
    "yes_no": 0.56,
    "choice": 0.32,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return load_photographs(write_photos_folder(tmp_path_factory.mktemp("world") / "photos"))


@pytest.fixture(scope="module")
def written(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_photos(folder, photographs, train=120, validation=6, test=20, seed=3)
    return folder


def turns(row):
    values = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
    return list(zip(row["kinds"], values[::2], values[1::2], strict=True))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_every_answer_is_what_an_independent_solver_reads_off_the_picture(written, split):
    for row in read_rows(written / f"{split}.json"):
        picture = np.asarray(Image.open(written / row["image"]))
        assert picture.shape == (96, 96, 3)
        cells = cells_in(picture, len(row["cells"]))
        assert cells == row["cells"], row["id"]
        assert sorted(row["kinds"]) == sorted(GRID_KINDS)
        for _, text, answer in turns(row):
            assert solve_grid(cells, text) == answer, (cells, text)


def test_both_grids_are_drawn_and_one_cell_at_least_is_empty(written):
    rows = read_rows(written / "train.json")
    assert {len(row["cells"]) for row in rows} == {2, 3}
    assert all(any(name is None for line in row["cells"] for name in line) for row in rows)


def test_no_photograph_is_in_two_splits(written, photographs):
    shown = {
        split: {digest for row in read_rows(written / f"{split}.json") for digest in row["photographs"]}
        for split in ("train", "validation", "test")
    }
    assert not shown["train"] & shown["test"]
    assert not shown["train"] & shown["validation"]
    assert not shown["validation"] & shown["test"]
    assert check_disjoint(written) == {split: len(digests) for split, digests in shown.items()}
    for split, digests in shown.items():
        assert digests <= {digest for digest, _ in photographs.of(split)}


def test_a_photograph_in_two_splits_is_an_error(written, tmp_path):
    rows = [dict(row) for row in read_rows(written / "test.json")]
    rows[0]["photographs"] = [read_rows(written / "train.json")[0]["photographs"][0]]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    (tmp_path / "train.json").write_bytes((written / "train.json").read_bytes())
    with pytest.raises(DataError, match="1 photographs are in train and in test"):
        check_disjoint(tmp_path)


def test_photographs_that_changed_since_a_world_was_begun_are_refused(photographs, written, tmp_path):
    hold_splits(tmp_path / "new", photographs)
    hold_splits(tmp_path / "new", photographs)
    more = load_photographs(write_photos_folder(tmp_path / "more", each=30))
    with pytest.raises(DataError, match=r"80 photographs were there when .*new was begun, 120 are there now"):
        hold_splits(tmp_path / "new", more)
    old = tmp_path / "old"
    shutil.copytree(written, old / "data")
    hold_splits(old, more)  # of earlier code: nothing is noted that may be wrong
    assert not (old / "splits.json").exists()
    hold_splits(old, photographs)
    assert (old / "splits.json").read_bytes() == (tmp_path / "new" / "splits.json").read_bytes()


def test_same_seed_same_bytes_other_seed_other_data(photographs, tmp_path):
    for name, seed in [("a", 5), ("b", 5), ("c", 6)]:
        write_photos(tmp_path / name, photographs, train=6, validation=2, test=3, seed=seed)
    a, b, c = (
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    )
    assert a == b
    assert set(a) == set(c)
    assert all(a[name] != c[name] for name in a)


def test_a_data_set_that_is_there_is_not_mixed_with_another(written, photographs):
    with pytest.raises(FileExistsError, match=r"train\.json exists"):
        write_photos(written, photographs, train=1, validation=0, test=0, seed=4)
    with pytest.raises(ValueError, match="test=-1"):
        write_photos(written / "new", photographs, train=0, validation=0, test=-1, seed=4)


def test_a_blind_guesser_is_weak(photographs):
    answers = defaultdict(Counter)
    for _, questions, _ in islice(grid_samples(7, "train", photographs), 400):
        for question in questions:
            answers[question.kind][question.answer] += 1
    share = {kind: max(found.values()) / found.total() for kind, found in answers.items()}
    assert all(share[kind] <= BLIND[kind] for kind in GRID_KINDS), share


def test_questions_about_what_is_absent_are_about_classes_that_are_not_shown(photographs):
    for grid, questions, _ in islice(grid_samples(7, "train", photographs), 100):
        shown = {one.name for one in grid.shown}
        for question in questions:
            if question.kind == "hallucination":
                name = next(name for name in photographs.classes if name in question.text)
                assert (question.answer == "none") == (name not in shown)


def row(kind, *pairs):
    values = [text for pair in pairs for text in pair]
    return {"conversations": [{"value": text} for text in values], "kinds": [kind] * len(pairs)}


def test_the_blind_score_is_the_commonest_answer_to_a_text_else_to_its_kind():
    train = [row("place", ("Q1", "a"), ("Q1", "b"), ("Q1", "b"), ("Q2", "c"), ("Q2", "c"), ("Q2", "c"))]
    train += [row("number", ("Q3", "1"))]
    test = [row("place", ("Q1", "b"), ("Q1", "a"), ("Q2", "c"), ("new", "c")), row("number", ("Q3", "2"))]
    found = blind_score(train, test)
    assert found.kinds == {"number": 0.0, "place": 75.0}
    assert found.score == 37.5
