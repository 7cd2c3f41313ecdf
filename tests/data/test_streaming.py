"""Rows that are read as they come: which, in what order, what of bad ones, and where a resumed run goes on."""

import io
import json
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import write_run

from switchkd.batch import Batch
from switchkd.data.collate import Collator
from switchkd.data.errors import DataError, SampleError
from switchkd.data.formats import load_rows
from switchkd.data.streaming import RowStream, StreamedBatches
from switchkd.recipe.schema import Data, WeightedData, load_recipe
from switchkd.train.run import train_stage
from switchkd.train.stage import open_run, open_stage
from switchkd.train.stream_loader import StreamLoader
from switchkd.typed_fields import RecipeError


def written(name):
    """A row of text alone."""
    return {"id": name, "question": f"What is {name}?", "answer": name}


def shards(folder, count=4, rows=6, kind="jsonl"):
    """Files of rows; the ids say which file and which row."""
    folder.mkdir(exist_ok=True)
    for shard in range(count):
        made = [written(f"{shard}-{number}") for number in range(rows)]
        file = folder / f"part-{shard}.{kind}"
        if kind == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in made))
        elif kind == "parquet":
            pq.write_table(pa.Table.from_pylist(made), file)
        else:
            with tarfile.open(file, "w") as archive:
                for row in made:
                    content = json.dumps(row).encode()
                    member = tarfile.TarInfo(f"{row['id']}.json")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


class Names(Collator):
    """A sample is its name, a batch its names, and those in `bad` cannot be used."""

    def __init__(self, *bad):
        self.bad = bad

    def encode(self, row):
        if row["problem"] or row["id"] in self.bad:
            raise SampleError(row["problem"] or f"sample {row['id']!r}: is one of the bad ones")
        return row["id"]

    def join(self, samples, packs=None):
        return Batch(tuple(samples), None, {}, {})


def loader(data, folder, collator=None, *, size=5, workers=0, **fields):
    given = Data(str(data), streaming=True, shuffle_buffer=4, **fields)
    stream = RowStream([str(data)], None, {})
    made = {"batch_size": size, "workers": workers, "seed": 3, "report": folder / "rows.json"}
    return StreamLoader(stream, given, collator or Names(), **made)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_a_stream_has_the_rows_that_are_there_in_an_order_of_seed_and_epoch(tmp_path, kind):
    data = shards(tmp_path / "data", kind=kind)
    stream = RowStream([str(data)], None, {})
    expected = {row["id"]: row for row in load_rows(str(data))}
    assert len(stream.shards) == 4
    assert [row["id"] for row in stream.head(7)] == list(expected)[:7]

    def read(seed, epoch):
        rows = stream.shuffled(seed=seed, buffer=8, rank=0, ranks=1)
        rows.set_epoch(epoch)
        return list(rows)

    first = read(1, 0)
    assert {row["id"]: row for row in first} == expected
    orders = [[row["id"] for row in rows] for rows in (first, read(1, 0), read(2, 0), read(1, 1))]
    assert orders[0] == orders[1]
    assert orders[0] not in (list(expected), orders[2], orders[3])


@pytest.mark.parametrize("count", [4, 3])
def test_ranks_share_the_rows_of_an_epoch(tmp_path, count):
    """Four files are two for each of two ranks; of three, each rank takes every other row."""
    stream = RowStream([str(shards(tmp_path / "data", count=count))], None, {})
    parts = [{row["id"] for row in stream.shuffled(seed=1, buffer=8, rank=r, ranks=2)} for r in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == 3 * count
    assert len(parts[0] | parts[1]) == 6 * count


def test_a_copy_of_a_data_set_of_the_hub_is_streamed_file_by_file(tmp_path):
    folder = shards(tmp_path / "data", kind="parquet")
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: talks\n  data_files: part-*.parquet\n---\n")
    stream = RowStream([f"{folder}:talks:train"], None, {})
    assert len(stream.shards) == 4
    rows = list(stream.shuffled(seed=1, buffer=8, rank=0, ranks=1))
    assert sorted(row["id"] for row in rows) == sorted(f"{s}-{n}" for s in range(4) for n in range(6))
    assert rows[0]["messages"][1]["content"][0]["text"] == rows[0]["id"]


def test_batches_go_on_without_end_and_every_epoch_has_every_row(tmp_path):
    batches = list(islice(loader(shards(tmp_path / "data"), tmp_path, size=6), 8))
    epochs = [[name for batch in batches[start : start + 4] for name in batch.keys] for start in (0, 4)]
    assert all(set(Counter(names).values()) == {1} and len(names) == 24 for names in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("taken", [1, 2, 4, 7])
def test_a_resumed_stream_goes_on_behind_the_last_batch(tmp_path, taken, monkeypatch):
    """Across the end of an epoch, and between bad rows that were told of before a batch was full."""
    monkeypatch.setattr("switchkd.data.streaming._TELL", 2)
    data = shards(tmp_path / "data")
    names = Names("0-1", "1-1", "1-2", "1-3", "3-0")
    whole = loader(data, tmp_path, names, max_bad_fraction=0.5)
    batches = iter(whole)
    list(islice(batches, taken))
    (tmp_path / whole.file_name()).write_text(whole.state())
    expected = list(islice(batches, 6))
    again = loader(data, tmp_path, names, max_bad_fraction=0.5)
    again.go_on(tmp_path)
    assert list(islice(again, 6)) == expected
    assert again.state() == whole.state()


def test_the_epoch_of_a_worker_is_its_own(tmp_path):
    """A data set keeps its epoch in memory that the workers of a loader share."""
    rows = RowStream([str(shards(tmp_path / "data"))], None, {}).shuffled(seed=3, buffer=4, rank=0, ranks=1)
    drawn = list(islice(StreamedBatches(rows, Names(), 5, {}, 0), 6))
    assert drawn[-1].position.epoch == 1
    assert rows.epoch == 0


@pytest.mark.slow
def test_workers_in_different_epochs_read_the_same_in_every_run(tmp_path):
    data = shards(tmp_path / "data", rows=2)
    runs = [[batch.keys for batch in islice(loader(data, tmp_path, size=3, workers=2), 300)] for _ in range(4)]
    assert [run == runs[0] for run in runs] == [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_a_resumed_stream_goes_on_with_the_worker_whose_turn_it_is(tmp_path, taken):
    data = shards(tmp_path / "data")
    whole = loader(data, tmp_path, Names("0-1", "1-1"), workers=2)
    batches = iter(whole)
    list(islice(batches, taken))
    (tmp_path / whole.file_name()).write_text(whole.state())
    expected = list(islice(batches, 7))
    again = loader(data, tmp_path, Names("0-1", "1-1"), workers=2)
    again.go_on(tmp_path)
    assert list(islice(again, 7)) == expected
    fewer = loader(data, tmp_path, workers=1)
    with pytest.raises(
        ValueError,
        match=r"2 worker processes read the stream then, and 1 do now, .* set train.dataloader_num_workers to 2",
    ):
        fewer.go_on(tmp_path)


def test_no_more_workers_than_there_are_files(tmp_path, caplog):
    assert loader(shards(tmp_path / "data", count=2), tmp_path, workers=8).workers == 2
    assert "2 of 8 worker processes prepare batches: a file is read by one, and this rank reads 2" in caplog.text


def test_bad_rows_are_named_listed_and_too_many_of_them_are_an_error_in_the_words_of_the_index(tmp_path, caplog):
    data = shards(tmp_path / "data", count=1, rows=40)
    bad = [f"0-{number}" for number in range(0, 40, 3)]  # 14, and of the first 1,000 rows 10 are put up with
    with pytest.raises(
        DataError, match=r"1\d of \d+ samples \(\d+\.\d%\) are unusable, more than the allowed 1.0%"
    ) as error:
        list(islice(loader(data, tmp_path, Names(*bad), size=2), 100))
    assert f"all listed in {tmp_path / 'rows.json'}. First: sample '0-" in str(error.value)
    assert str(error.value).endswith("Repair the data or raise the allowed fraction.")
    told = int(str(error.value).split()[0])
    assert len(json.loads((tmp_path / "rows.json").read_text())["bad"]) == told > 10
    assert caplog.text.count("skipped sample '0-") == told
    few = loader(data, tmp_path, Names(*bad), size=2, max_bad_fraction=0.5)
    assert len(list(islice(few, 100))) == 100


def test_rows_that_cannot_be_read_say_where_they_are(tmp_path, caplog):
    data = shards(tmp_path / "data", count=1)
    with (data / "part-0.jsonl").open("a") as file:
        file.write(json.dumps({"id": "other", "picture of": "nothing"}) + "\n")
    assert len(list(islice(loader(data, tmp_path, size=6), 1))) == 1
    list(islice(loader(data, tmp_path, size=6), 2))
    assert "part-0.jsonl, line 7, row 6 (id 'other')" in caplog.text


def test_a_file_that_is_cut_off_is_an_error_that_names_it(tmp_path):
    data = shards(tmp_path / "data", count=1, rows=40, kind="tar")
    file = data / "part-0.tar"
    file.write_bytes(file.read_bytes()[: 30 * 1024 + 520])
    with pytest.raises(DataError, match=r"a stream of 1 shard ends early: .*part-0.tar: not a readable archive"):
        list(islice(loader(data, tmp_path, size=2), 40))


def test_a_stream_without_a_usable_row_ends(tmp_path):
    data = shards(tmp_path / "data", count=1, rows=3)
    with pytest.raises(DataError, match=r"ends early: none of its 3 rows can be used"):
        list(loader(data, tmp_path, Names("0-0", "0-1", "0-2")))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.max_steps", "-1"], r"stage train counts epochs \(1\): .* set train.max_steps"),
        (["--train.group_by_length", "true"], "train.group_by_length needs the lengths of all rows"),
        (["--data.packing", "true"], "data.packing needs the lengths of all rows"),
        (["--data.rows", "3"], "streaming is true and rows is 3: .* leave rows out"),
        (["--train.arguments.save_strategy", "epoch"], r"save_strategy is epoch: .* set train.save_steps"),
    ],
)
def test_what_needs_to_know_all_rows_is_refused(tmp_path_factory, flags, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file(tmp_path_factory), ["--data.streaming", "true", *flags])


def test_weights_count_rows_that_are_known():
    recipe = load_recipe("recipes/tiny.yaml", ["--data.streaming", "true", "--train.max_steps", "2"])
    heavy = replace(recipe.data, train=(WeightedData("a.json", 2.0), "b.json"))
    with pytest.raises(ValueError, match=r"stage train gives a weight to a.json: weights count rows that are known"):
        replace(recipe, data=heavy)


_files = []


def recipe_file(factory):
    """The recipe of a run that is written once."""
    if not _files:
        _files.append(write_run(factory.mktemp("run")))
    return _files[0]


@pytest.mark.long
def test_a_resumed_run_learns_from_the_rows_of_the_uninterrupted_one(tmp_path_factory, tmp_path, monkeypatch):
    recipe = load_recipe(recipe_file(tmp_path_factory), ["--method.name", "sft", "--data.streaming", "true"])
    fields = {"max_steps": 8, "save_steps": 5, "save_total_limit": None, "logging_steps": 1}
    train = replace(recipe.train, **fields, per_device_train_batch_size=4, report_to=())
    recipe = replace(recipe, train=train, data=replace(recipe.data, shuffle_buffer=8))
    (stage,) = recipe.resolved_stages()
    seen = []
    take = StreamLoader.__iter__

    def noting(self):
        for batch in take(self):
            seen.append(batch.keys)
            yield batch

    monkeypatch.setattr(StreamLoader, "__iter__", noting)

    def trained():
        seen.clear()
        context = open_stage(open_run(recipe), stage, tmp_path)
        train_stage(context)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        return list(seen), [(line["step"], line["epoch"], line.get("loss")) for line in logged]

    whole, logged = trained()
    assert len(whole) == 8
    assert [(step, epoch) for step, epoch, loss in logged if loss] == [(step, step / 8) for step in range(1, 9)]
    assert len({key for keys in whole[:6] for key in keys}) == 24
    newest = tmp_path / "checkpoint-8"
    assert json.loads((newest / "stream-0.json").read_text())["positions"]["0"] == {"epoch": 1, "drawn": 8, "told": 0}
    newest.rename(tmp_path / "gone")
    again, same = trained()
    assert again == whole[5:]
    assert same == logged
