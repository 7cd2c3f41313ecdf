import json
from itertools import islice

import pytest
from PIL import Image

from switchkd import world
from switchkd.world.draw import draw
from switchkd.world.scenes import DIFFICULTIES, SPLITS
from switchkd.world.write import samples


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_data(tmp_path):
    for name, seed in [("a", 5), ("b", 5), ("c", 6)]:
        world.write(tmp_path / name, train=6, validation=2, test=3, seed=seed, difficulty="medium")
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b
    assert set(a) == set(c)
    assert all(a[name] != c[name] for name in a)


def test_rows_are_llava_json_with_kinds_and_pictures(tmp_path):
    world.write(tmp_path, train=4, validation=0, test=1, seed=0, difficulty="easy")
    assert not (tmp_path / "validation.json").exists()
    rows = json.loads((tmp_path / "train.json").read_text())
    assert len({row["id"] for row in rows}) == 4
    for row in rows:
        turns = row["conversations"]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 10
        assert [turn["value"].count("<image>") for turn in turns] == [1] + [0] * 19
        assert sorted(row["kinds"]) == sorted(world.KINDS)
        with Image.open(tmp_path / row["image"]) as image:
            assert (image.mode, image.size) == ("RGB", (48, 48))


@pytest.mark.slow
def test_no_scene_is_in_two_splits():
    found = {
        split: {scene.fingerprint() for seed in (0, 1) for scene, _, _ in islice(samples(seed, split, "easy"), 1000)}
        for split in SPLITS
    }
    assert all(len(fingerprints) > 1900 for fingerprints in found.values())
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_equal_descriptions_have_equal_fingerprints_and_others_do_not():
    drawn = [scene for scene, _, _ in islice(samples(0, "train", "hard"), 500)]
    assert (
        len({scene.describe() for scene in drawn}) == len({scene.fingerprint() for scene in drawn}) == len(set(drawn))
    )


def test_harder_pictures_hold_more_things_and_more_noise():
    things = {}
    spread = {}
    for difficulty in DIFFICULTIES:
        drawn = list(islice(samples(0, "train", difficulty), 100))
        things[difficulty] = sum(len(scene.things) for scene, _, _ in drawn)
        # the outermost ring of pixels is background in every picture
        spread[difficulty] = sum(picture[0].std(axis=0).mean() for _, _, picture in drawn)
    assert things["easy"] < things["medium"] < things["hard"]
    assert spread["easy"] < spread["medium"] < spread["hard"]


def test_one_scene_has_many_pictures():
    from random import Random

    scene = next(samples(0, "train", "medium"))[0]
    assert (draw(scene, Random(1), "medium") == draw(scene, Random(1), "medium")).all()
    assert (draw(scene, Random(1), "medium") != draw(scene, Random(2), "medium")).any()


def test_an_existing_data_set_is_never_mixed_with_a_new_one(tmp_path):
    world.write(tmp_path, train=1, validation=0, test=0, seed=0, difficulty="easy")
    with pytest.raises(FileExistsError, match=r"train\.json exists"):
        world.write(tmp_path, train=1, validation=0, test=0, seed=1, difficulty="easy")
    with pytest.raises(ValueError, match=r"test=-1"):
        world.write(tmp_path / "new", train=0, validation=0, test=-1, seed=0, difficulty="easy")
