"""Which photographs there are, what they are called, and in which split each is."""

import io
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_photos import COLOURS, write_photos_folder
from PIL import Image

from switchkd.data.errors import DataError
from switchkd.world.photographs import load_photographs
from switchkd.world.scenes import SPLITS


def every_digest(photographs):
    return {split: {digest for digest, _ in photographs.of(split)} for split in SPLITS}


def test_every_photograph_is_in_one_split(tmp_path):
    photographs = load_photographs(write_photos_folder(tmp_path / "photos", each=40))
    found = every_digest(photographs)
    assert photographs.classes == ("meadow", "pond", "red fox", "snow")
    assert {split: len(digests) for split, digests in found.items()} == {"train": 136, "validation": 8, "test": 16}
    assert len(set.union(*found.values())) == 160
    for name, digests in photographs.by_split["test"].items():
        assert len(digests) == 4, name


def test_what_is_in_a_file_decides_its_split_and_not_its_name(tmp_path):
    first = write_photos_folder(tmp_path / "a")
    before = every_digest(load_photographs(first))
    for name in COLOURS:
        for file in sorted((first / name).iterdir()):
            file.rename(file.with_name(f"x{99 - int(file.stem):02}.PNG"))
    assert every_digest(load_photographs(first)) == before


def test_equal_files_are_one_photograph(tmp_path):
    folder = write_photos_folder(tmp_path / "photos")
    shutil.copy(folder / "snow" / "000.png", folder / "snow" / "again.png")
    photographs = load_photographs(folder)
    assert photographs.repeated == 1
    assert sum(len(digests) for digests in every_digest(photographs).values()) == 80


def test_a_photograph_opens_as_what_it_is(tmp_path):
    photographs = load_photographs(write_photos_folder(tmp_path / "photos"))
    for digest, name in photographs.of("test"):
        mean = np.asarray(photographs.open(digest)).mean((0, 1))
        assert np.abs(mean - COLOURS[{"red fox": "red_fox", "pond": "Pond"}.get(name, name)]).max() < 3


def test_tables_with_numbers_or_names_give_the_same_as_folders(tmp_path):
    folder = write_photos_folder(tmp_path / "photos")
    expected = load_photographs(folder)
    rows = [(name, file.read_bytes()) for name in COLOURS for file in sorted((folder / name).iterdir())]
    plain = tmp_path / "plain" / "part.parquet"
    plain.parent.mkdir()
    pq.write_table(pa.table({"label": [n for n, _ in rows], "image": [b for _, b in rows], "note": ["x"] * 80}), plain)
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(COLOURS))})
    numbered = datasets.Dataset.from_dict(
        {"img": [{"bytes": b, "path": None} for _, b in rows], "fine": [list(COLOURS).index(n) for n, _ in rows]},
        features,
    )
    numbered.to_parquet(tmp_path / "numbered.parquet")
    numbered.save_to_disk(tmp_path / "saved")
    for source in (plain.parent, plain, tmp_path / "numbered.parquet", tmp_path / "saved"):
        photographs = load_photographs(source)
        assert photographs.classes == expected.classes
        assert photographs.by_split == expected.by_split
        digest, _ = photographs.of("train")[7]
        assert np.array_equal(np.asarray(photographs.open(digest)), np.asarray(expected.open(digest)))


def test_a_copy_of_a_data_set_of_the_hub_is_read_by_its_name(tmp_path):
    folder = write_photos_folder(tmp_path / "photos")
    copy = tmp_path / "copy"
    for split, numbers in {"train": range(15), "test": range(15, 20)}.items():
        for name in COLOURS:
            (copy / split / name).mkdir(parents=True)
            for number in numbers:
                shutil.copy(folder / name / f"{number:03}.png", copy / split / name)
    assert load_photographs(f"{copy}::train").by_split["test"]["snow"] != ()
    assert len(load_photographs(f"{copy}::train").of("train")) == 4 * 13


def test_a_folder_of_splits_is_no_folder_of_classes_and_is_named_with_its_split(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        write_photos_folder(tmp_path / "copy" / split, each=12, first=20 * number)
    with pytest.raises(DataError) as error:
        load_photographs(tmp_path / "copy")
    assert "copy/test: has its pictures in folders of its own (Pond, meadow, red_fox, …)" in str(error.value)
    assert f"name {tmp_path / 'copy'}::train" in str(error.value)
    both = load_photographs(f"{tmp_path / 'copy'}::train+test")
    assert both.classes == ("meadow", "pond", "red fox", "snow")
    assert sum(len(both.of(split)) for split in SPLITS) == 4 * 24


def test_a_copy_with_parquet_files_in_a_folder_is_told_apart_from_classes(tmp_path):
    (tmp_path / "copy" / "data").mkdir(parents=True)
    (tmp_path / "copy" / "data" / "train-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"train-00000\.parquet: is no picture by its name.*copy::train"):
        load_photographs(tmp_path / "copy")


def broken(folder):
    (folder / "snow" / "000.png").write_bytes(b"no picture")
    return folder


def huge(folder):
    Image.new("1", (20000, 10000)).save(folder / "snow" / "000.png")
    return folder


def tables(folder, *contents):
    folder.mkdir()
    for number, content in enumerate(contents):
        if isinstance(content, bytes):
            (folder / f"{number}.parquet").write_bytes(content)
        else:
            pq.write_table(pa.table({"image": [b"x"], "label": [content]}), folder / f"{number}.parquet")
    return folder


def text(folder):
    (folder / "snow" / "notes.txt").write_text("by me")
    return folder


def nothing(folder):
    (folder / "empty_class").mkdir()
    return folder


def doubled(folder):
    shutil.copy(folder / "snow" / "000.png", folder / "Pond" / "snow.png")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: write_photos_folder(f, classes=("snow",)), "has 1 class of photographs (snow); questions need 3"),
        (
            lambda f: write_photos_folder(f, each=9),
            "meadow has 9, pond has 9, red fox has 9, snow has 9, each class needs 10",
        ),
        (
            lambda f: write_photos_folder(f, classes=("a_b", "A-b", "c_d")),
            "'A-b', 'a_b' cannot be told apart in text, all are 'a b'",
        ),
        (
            lambda f: write_photos_folder(f, classes=("empty", "full", "snow")),
            "'empty' cannot be told from the answer 'empty'",
        ),
        (lambda f: write_photos_folder(f, classes=("__", "full", "snow")), "'__' has no name that can be said"),
        (lambda f: broken(write_photos_folder(f)), "snow/000.png: is no picture that can be read"),
        (
            lambda f: huge(write_photos_folder(f)),
            "snow/000.png: is no picture that can be read (DecompressionBombError",
        ),
        (lambda f: tables(f, "cat", b"nothing"), "1.parquet: not a readable Parquet file"),
        (lambda f: tables(f, "cat", [1]), "photos: cannot be read as one table"),
        (lambda f: text(write_photos_folder(f)), "snow/notes.txt: is no picture by its name"),
        (lambda f: nothing(write_photos_folder(f)), "empty_class: the class has no photographs"),
        (lambda f: doubled(write_photos_folder(f)), "one picture is in two classes"),
        (lambda f: f.mkdir() or f, "holds neither a folder of pictures for each class nor Parquet files"),
        (lambda f: f, "no such folder or file"),
    ],
    ids=[
        "one class",
        "few",
        "alike",
        "taken",
        "unsayable",
        "broken",
        "huge",
        "no table",
        "two tables",
        "text",
        "empty",
        "double",
        "no folders",
        "nothing",
    ],
)
def test_what_cannot_be_asked_about_is_refused(tmp_path, make, message):
    with pytest.raises(DataError) as error:
        load_photographs(make(tmp_path / "photos"))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b""], "text": ["cat"]}, "which column is the class? It has image, text; none can be"),
        ({"picture": [b""], "label": ["cat"]}, "which column is the photograph?"),
        ({"image": [None], "label": ["cat"]}, "row 0: has no picture"),
        ({"image": [b"x"], "label": ["cat"]}, "row 0: is no picture that can be read"),
    ],
    ids=["no label", "no image", "missing", "broken"],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, columns, message):
    types = {"image": pa.binary(), "picture": pa.binary()}
    table = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    with pytest.raises(DataError) as error:
        load_photographs(tmp_path / "t.parquet")
    assert message in str(error.value)


def test_a_photograph_that_is_cut_off_is_named_when_it_is_shown(tmp_path):
    from switchkd.world.photo_world import write_photos

    folder = write_photos_folder(tmp_path / "photos", each=10)
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).convert("RGB").save(buffer, "JPEG")
    for file in (folder / "snow").iterdir():
        file.with_suffix(".jpg").write_bytes(buffer.getvalue()[: -100 - int(file.stem)])
        file.unlink()
    with pytest.raises(DataError, match=r"photos/snow/\d+\.jpg' cannot be read"):
        write_photos(tmp_path / "data", load_photographs(folder), train=20, validation=0, test=0, seed=0)
