"""Which samples share a row, and how they become a batch."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from cases import open_tiny
from datasets import Dataset
from packed_inputs import packed_batch
from run_files import write_run
from tiny_families import BUILDS
from tiny_models import tiny_llava
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from switchkd.batch import sample_id
from switchkd.data import packing
from switchkd.data.errors import DataError
from switchkd.data.packing import PackCollator, Packs, pack
from switchkd.doctor import Examined, check_lengths, check_memory, check_stage
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.recipe.schema import load_recipe
from switchkd.train import memory
from switchkd.train.largest_batch import largest_batch
from switchkd.train.run import train_stage
from switchkd.train.stage import open_run, open_stage, total_steps
from switchkd.typed_fields import RecipeError


def lengths_of(count, images=0.9):
    """Rows with an image, of about one length, and some that are short."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(count, generator=generator).mul(0.8).add(5).exp()
    image = torch.rand(count, generator=generator) < images
    return (text + 729 * image).clamp(20, 2048).int().tolist()


@pytest.mark.parametrize("count", [0, 1, 2, 999, 9000])
def test_every_sample_is_in_one_row_and_no_row_is_too_long(count):
    lengths = lengths_of(count)
    packs = pack(lengths, 4096, seed=1)
    assert sorted(number for row in packs for number in row) == list(range(count))
    assert all(sum(lengths[number] for number in row) <= 4096 for row in packs)


@pytest.mark.parametrize(("images", "most"), [(0.0, 0.01), (0.9, 0.06)])
def test_hardly_anything_is_padding(images, most):
    """Where most samples have 750 tokens and more, the last of a row of 4,096 is often missing."""
    lengths = lengths_of(5000, images)
    rows = len(pack(lengths, 4096, seed=1))
    assert 0 <= 1 - sum(lengths) / (rows * 4096) < most


def test_the_fullest_row_that_has_room_is_taken():
    """9 and 1; 6 and 4; 5 and 5: the 4 goes to the 6, which it fills, and not to one of the 5s."""
    lengths = [1, 4, 5, 5, 6, 9]
    rows = [sorted(lengths[number] for number in row) for row in pack(lengths, 10, seed=0)]
    assert sorted(rows) == [[1, 9], [4, 6], [5, 5]]


def test_rows_depend_on_lengths_limit_and_seed_alone():
    lengths = lengths_of(300)
    first = pack(lengths, 2048, seed=1)
    torch.manual_seed(99)
    assert pack(lengths, 2048, seed=1) == first
    assert pack(lengths, 2048, seed=2) != first


def test_samples_share_rows_with_those_that_were_drawn_with_them(monkeypatch):
    """Or rows of one length would go together: here all samples of a window are in rows of their own window."""
    monkeypatch.setattr(packing, "WINDOW", 100)
    lengths = lengths_of(250)
    drawn = torch.randperm(250, generator=torch.Generator().manual_seed(3)).tolist()
    window = {number: place // 100 for place, number in enumerate(drawn)}
    assert all(len({window[number] for number in row}) == 1 for row in pack(lengths, 4096, seed=3))


def indexed(lengths):
    return Dataset.from_list(
        [{"key": f"row-{n}@0", "length": length, "image_count": n % 3} for n, length in enumerate(lengths)]
    )


def test_a_sample_that_is_longer_than_a_row_is_named():
    with pytest.raises(
        DataError, match=r"sample 'row-1' has 40 tokens and a packed row at most 30: raise data.max_length"
    ):
        Packs(indexed([7, 40, 12]), 30, seed=0)


def test_without_a_length_a_row_is_as_long_as_the_longest_sample():
    packs = Packs(indexed([7, 40, 12, 20]), None, seed=0)
    assert packs.limit == 40
    assert str(packs) == "4 samples in 2 packed rows of at most 40 tokens: 2.00 samples in a row, 1.2% of it padding"
    assert sorted(packs.lengths) == [39, 40]
    assert {row["key"] for row in packs.most_images()} == {"row-2@0", "row-3@0", "row-0@0"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A stage whose three samples fit into two rows."""
    made = open_tiny(tmp_path_factory.mktemp("packed"), "qwen2_5_vl")
    longest, *_, shortest = sorted(made.rows["length"][:], reverse=True)
    limit = longest + shortest
    data = replace(made.run.recipe.data, packing=True, max_length=limit)
    run = replace(made.run, recipe=replace(made.run.recipe, data=data))
    return replace(made, run=run, packs=Packs(made.rows, limit, seed=0))


def test_a_loader_makes_the_batch_of_the_padded_rows_in_packed_ones(opened):
    (batch,) = DataLoader(opened.drawn, batch_size=2, collate_fn=opened.collate)
    assert isinstance(opened.collate, PackCollator)
    order = [number for row in opened.packs.packs for number in row]
    padded = opened.collator([opened.rows[number] for number in order])
    assert [sample_id(key) for key in batch.keys] == [f"row-{number}" for number in order]
    expected = packed_batch(padded, tuple(map(len, opened.packs.packs)))
    leaves = tree_leaves(batch), tree_leaves(expected)
    assert len(leaves[0]) == len(leaves[1]) > 12
    for ours, other in zip(*leaves, strict=True):
        assert torch.equal(ours, other) if isinstance(ours, torch.Tensor) else ours == other
    assert torch.equal(batch.student.is_text(), expected.student.samples() >= 0)
    assert batch.student.samples().unique().tolist() == [-1, 0, 1, 2]
    assert batch.student.is_text().sum() == sum(opened.rows["length"])
    rows = [row for row, numbers in enumerate(opened.packs.packs) for _ in numbers]
    assert batch.student.rows().tolist() == rows


def test_what_speaks_of_rows_and_lengths_speaks_of_packed_ones(opened, monkeypatch):
    epochs = replace(opened, stage=replace(opened.stage, max_steps=-1, num_train_epochs=3.0))
    assert total_steps(epochs) == 3  # two rows are a batch
    said = str(opened.packs)
    assert "3 samples in 2 packed rows" in said
    examined = Examined(opened)
    (line,) = check_stage.steps(examined)
    assert said in line.detail
    line, *_ = check_lengths.lengths(examined)
    assert said in line.detail
    given = []

    def estimate(*arguments):
        given.append(arguments[-1])
        raise ValueError("seen")

    monkeypatch.setattr(check_memory, "estimate", estimate)
    with pytest.raises(ValueError, match="seen"):
        next(check_memory.memory(examined))
    (batch,) = given
    assert len(batch.keys) == 2 * len(opened.packs.most_images())
    assert batch.student.tokens.shape == batch.student.positions.shape == (2, opened.packs.limit)
    assert torch.equal(batch.student.tokens.flatten()[batch.student.predicts + 1], batch.student.targets)


def test_packing_and_groups_of_one_length_are_two_answers_to_one_question(tmp_path):
    with pytest.raises(
        RecipeError, match=r"data.packing and train.group_by_length are both true: .* keep one of the two"
    ):
        load_recipe(write_run(tmp_path), ["--data.packing", "true", "--train.group_by_length", "true"])


@pytest.mark.long
def test_a_run_sees_every_sample_once_an_epoch_also_when_it_is_resumed(tmp_path, monkeypatch):
    seen = []
    collate = PackCollator.__call__

    def noting(self, packs):
        batch = collate(self, packs)
        seen.append(batch.keys)
        return batch

    monkeypatch.setattr(PackCollator, "__call__", noting)
    fields = {"max_steps": -1, "num_train_epochs": 2.0, "save_steps": 5, "save_total_limit": None, "logging_steps": 1}
    recipe = load_recipe(write_run(tmp_path), ["--method.name", "sft"])
    train = replace(recipe.train, **fields, per_device_train_batch_size=2, report_to=())
    recipe = replace(recipe, train=train, data=replace(recipe.data, packing=True))
    (stage,), folder = recipe.resolved_stages(), tmp_path / "run"

    def trained():
        context = open_stage(open_run(recipe), stage, folder)
        train_stage(context)
        return context.packs

    packs = trained()
    steps = math.ceil(len(packs) / 2)
    whole, lines = list(seen), (folder / "metrics.jsonl").read_text().splitlines()
    assert len(whole) == 2 * steps < 24
    times = Counter(key for keys in whole for key in keys)
    assert (len(times), set(times.values())) == (24, {2})
    assert whole[:steps] != whole[steps:]
    assert json.loads((folder / "checkpoint-8" / "origin.json").read_text())["rows"].endswith(f", {packs}")
    assert steps == 4  # it goes on behind the first step of the second epoch
    shutil.rmtree(folder / "checkpoint-8")
    seen.clear()
    trained()
    assert seen == whole[steps + 1 :]
    again = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line).get("loss") for line in again] == [json.loads(line).get("loss") for line in lines]


def test_the_largest_batch_has_as_many_images_as_a_packed_row_holds(tmp_path, monkeypatch):
    """A tiny image is 16 tokens: rows of 100 tokens hold five of 16 and two for an answer."""
    recipe = load_recipe(write_run(tmp_path), ["--data.max_length", "100"])
    packed_recipe = replace(recipe, data=replace(recipe.data, packing=True))
    (stage,) = recipe.resolved_stages()
    student, teacher = (Pathway(tiny_llava(image_size=32, seed=seed)) for seed in (1, 2))
    student.train_only(("vision", "projector", "language"))
    pair = Pair(student, teacher, needs=stage.method.needs, vocabulary=96)
    alone, together = (largest_batch(each, stage, pair) for each in (recipe, packed_recipe))
    assert (len(alone.keys), len(together.keys)) == (4, 20)
    assert (len(alone.student.images["pixel_values"]), len(together.student.images["pixel_values"])) == (4, 20)
    assert alone.student.tokens.shape == together.student.tokens.shape == (4, 100)
    assert together.student.offsets.tolist() == [row * 100 + 20 * sample for row in range(4) for sample in range(5)]
    monkeypatch.setattr(memory, "estimate", lambda *given: "much")
    said = "much, for 4 rows of 100 tokens with as many images as they hold (data.max_length, the longest there can be)"
    assert memory.forecast(packed_recipe, stage) == said


def test_the_forecast_refuses_a_family_that_cannot_be_packed(tmp_path):
    recipe = load_recipe(write_run(tmp_path), ["--data.packing", "true"])
    BUILDS["gemma3"].config(16, 1).save_pretrained(tmp_path / "student")
    said = memory.forecast(recipe, recipe.resolved_stages()[0])
    assert said.startswith("cannot be estimated: data.packing is true, and samples of gemma3 cannot share a row")
