import json
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Pillow

from switchkd.data import containers, sources
from switchkd.data.errors import DataError
from switchkd.data.formats import FEATURES, load_rows

TEXT = {"type": "text", "text": None}
QUESTION = {"role": "user", "content": [{"type": "image", "text": None}, TEXT | {"text": "What is it?"}]}
ANSWER = {"role": "assistant", "content": [TEXT | {"text": "A cat."}]}
CANONICAL = [QUESTION | {"reasoning": None, "learned": False}, ANSWER | {"reasoning": None, "learned": True}]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Pillow.new("RGB", (8, 6), "red").save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(folder, rows, name="data.json"):
    path = folder / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


def llava(value=None, **more):
    value = value or ("<image>\nWhat is it?" if more.get("image") else "What is it?")
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "A cat."}], **more}


def messages_row(**more):
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    return {
        "id": "x",
        "images": ["images/a.png"],
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}],
        **more,
    }


def expected_row(folder, **more):
    row = {"id": "x", "images": [{"bytes": None, "path": str(folder / "images" / "a.png")}], "videos": []}
    return (
        row
        | {"messages": CANONICAL, "kinds": [None], "accepted": [], "metric": None, "teacher": None, "problem": None}
        | more
    )


def canonical(row):
    """Without where it stands."""
    assert row["source"].endswith("row 0")
    return {name: value for name, value in row.items() if name != "source"}


def test_reads_llava_json(folder):
    rows = load_rows(write(folder, [llava(id="x", image="images/a.png", kind="object")]))
    assert rows.features == FEATURES
    assert canonical(rows[0]) == expected_row(folder, kinds=["object"])


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_reads_messages_and_images(folder, name):
    rows = load_rows(write(folder, [messages_row(), messages_row(id="y")], name))
    assert canonical(rows[0]) == expected_row(folder)
    assert rows["id"][:] == ["x", "y"]


def test_the_format_is_found_in_the_content_not_in_the_name(folder):
    path = write(folder, [messages_row()], "data.jsonl").rename(folder / "data.txt")
    assert canonical(load_rows(path)[0]) == expected_row(folder)


def test_reads_parquet_with_embedded_bytes_and_with_paths(folder):
    content = (folder / "images" / "a.png").read_bytes()
    columns = {"id": "x", "messages": [QUESTION, ANSWER]}  # Arrow wants one type: parts everywhere
    embedded = Dataset.from_list([columns | {"images": [{"bytes": content, "path": "elsewhere.png"}]}])
    embedded.to_parquet(folder / "embedded.parquet")
    assert canonical(load_rows(folder / "embedded.parquet")[0]) == expected_row(
        folder, images=[{"bytes": content, "path": None}]
    )
    Dataset.from_list([columns | {"images": ["images/a.png"]}]).to_parquet(folder / "paths.parquet")
    assert canonical(load_rows(folder / "paths.parquet")[0]) == expected_row(folder)


def test_reads_a_saved_data_set_without_decoding_its_images(folder):
    content = (folder / "images" / "a.png").read_bytes()
    messages = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}]
    row = {"id": "x", "images": [{"bytes": content, "path": None}], "messages": messages}
    features = Features(
        {
            "id": Value("string"),
            "images": List(Image()),
            "messages": List({"role": Value("string"), "content": Value("string")}),
        }
    )
    Dataset.from_list([row], features=features).save_to_disk(folder / "saved")
    assert canonical(load_rows(folder / "saved")[0]) == expected_row(folder, images=row["images"])


def test_several_images_per_row_keep_their_places(folder):
    row = llava("<image>\n<image>\nSame?", image=["images/a.png", "images/b.png"])
    row["conversations"] += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    loaded = load_rows(write(folder, [row | {"kinds": ["compare", None]}]))[0]
    assert [image["path"][-5:] for image in loaded["images"]] == ["a.png", "b.png"]
    assert [part["type"] for part in loaded["messages"][0]["content"]] == ["image", "image", "text"]
    assert loaded["messages"][0]["content"][2]["text"] == "Same?"
    assert loaded["kinds"] == ["compare", None]


def test_text_only_rows_and_missing_ids(folder):
    rows = load_rows(write(folder, [llava("Hello"), llava("Again", image=None)]))
    assert [row["images"] for row in rows] == [[], []]
    assert rows["id"][:] == ["0", "1"]


def test_image_marks_that_are_text_stay_text(folder):
    in_answer = llava("<image>\nWhat tag?", image="images/a.png")
    in_answer["conversations"][1]["value"] = "The <image> tag."
    parts = messages_row()
    parts["messages"][0]["content"][1]["text"] = "Is <image> a tag?"
    rows = load_rows(write(folder, [in_answer, parts]))
    assert rows[0]["messages"][1]["content"] == [TEXT | {"text": "The <image> tag."}]
    assert rows[1]["messages"][0]["content"][1] == TEXT | {"text": "Is <image> a tag?"}


def test_image_root_may_be_elsewhere(folder, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("elsewhere"), [llava(image="a.png")])
    assert load_rows(path, folder / "images")[0]["images"][0]["path"] == str(folder / "images" / "a.png")


def test_a_refused_path_marks_the_row_and_is_not_kept(folder):
    rows = load_rows(write(folder, [llava(image="images/a.png"), llava(image="../secret.png")]))
    assert rows[0]["problem"] is None
    assert rows[1]["images"] == [{"bytes": None, "path": None}]
    assert "image 1 of 1: image path '../secret.png' names a parent folder" in rows[1]["problem"]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_file_that_was_cut_off_names_file_and_line(folder, name):
    path = write(folder, [llava(), llava(), llava()], name)
    text = path.read_text() if name.endswith("l") else json.dumps([llava(), llava()], indent=1)
    path.write_text(text[:-20])
    line = text[:-20].count("\n") + 1
    with pytest.raises(DataError, match=rf"{name}, line {line}, column \d+: not valid JSON, perhaps cut off"):
        load_rows(path)


BAD_ROWS = {
    "unknown keys": (
        [{"poem": 1, "verse": 2}],
        r"`conversations` \(LLaVA\) or a list `messages`.*keys poem, verse\. .*data\.columns",
    ),
    "more marks than images": ([llava("<image><image>", id="q7", image="a.png")], "'q7'.*2 image marks.*1 images"),
    "fewer marks than images": ([llava("What?", id="q7", image="a.png")], "'q7'.*0 image marks.*1 images"),
    "part without image": ([messages_row(images=[])], "1 image marks.*0 images"),
    "unknown speaker": ([{"conversations": [{"from": "bot", "value": "x"}]}], "`from`.*human, gpt, system, not 'bot'"),
    "unknown role": ([{"messages": [{"role": "tool", "content": "x"}]}], "`role`.*not 'tool'"),
    "no content": ([{"messages": [{"role": "user"}]}], "text or a list of parts, not NoneType"),
    "image in an answer": (
        [{"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}],
        "assistant turn has a part of type 'image'",
    ),
    "video": (
        [{"messages": [{"role": "user", "content": [{"type": "video"}]}]}],
        r"1 video marks \(<video>\) but 0 videos",
    ),
    "video without a mark": ([llava("Hi", video="a.mp4")], r"0 video marks \(<video>\) but 1 videos"),
    "image of another type": ([llava(image=7)], "an image must be a path, bytes"),
    "image twice": ([llava(image="a.png", images=["a.png"])], "both `image` and `images`"),
    "kinds and answers": ([llava("Hi", kinds=["a", "b"])], "2 kinds but 1 answers"),
    "kind that is no text": ([llava("Hi", kind=3)], "`kind` must be text"),
    "no rows": ([], "has no rows"),
    "no objects": (["text"], r"row 0 \(id '0'\): a row must be an object, not str"),
    "half a character": ([llava("\ud800", id="q7")], "'q7'\\): text or kind holds half a Unicode character"),
}


@pytest.mark.parametrize(("rows", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_rows_say_what_is_wrong_and_where(folder, rows, message):
    path = write(folder, rows)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(path)
    assert str(path) in str(caught.value)


BAD_FILES = {
    "csv": (b"id,question\n1,2\n", "unknown format; looked for a JSON list"),
    "empty": (b"", "is empty"),
    "not utf-8": (b'[\n"caf\xe9"]', "line 2: not UTF-8"),
    "not parquet": (b"PAR1 and then nothing", "not a readable Parquet file"),
    "very deep": (b"[" * 200_000, "JSON cannot be read"),
}


@pytest.mark.parametrize(("content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_say_what_is_wrong(folder, content, message):
    path = folder / "data.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(path)
    assert str(path) in str(caught.value)


def test_bad_folders_say_what_is_wrong(folder):
    with pytest.raises(DataError, match="no such file"):
        load_rows(folder / "nothing.json")
    with pytest.raises(DataError, match=r"has no state\.json"):
        load_rows(folder)
    with pytest.raises(DataError, match="does not exist"):
        load_rows(write(folder, [llava("Hi")]), folder / "nowhere")
    DatasetDict({"train": Dataset.from_list([{"id": "x"}])}).save_to_disk(folder / "splits")
    with pytest.raises(DataError, match=r"holds the splits train; name one of them, such as .*splits/train"):
        load_rows(folder / "splits")


def test_a_repeated_id_is_told_apart_by_its_row(folder):
    """As in LLaVA's mix-665k, where several tasks on one image share its id."""
    path = write(folder, [llava(id="5"), llava(id=5), llava(id="6")])
    assert load_rows(path)["id"] == ["5", "5#1", "6"]


def kinds_of_sources(folder):
    for name, rows in (("a.jsonl", [llava(id="1"), llava(id="2")]), ("b.jsonl", [llava(id="2"), llava()])):
        write(folder, rows, name)
    return {
        "folder": folder,
        "glob": f"{folder}/*.jsonl",
        "glob over folders": f"{folder.parent}/**/*.jsonl",
        "list": [folder / "a.jsonl", str(folder / "b.jsonl")],
        "list of globs": [f"{folder}/a*", f"{folder}/b*"],
    }


@pytest.mark.parametrize("kind", ["folder", "glob", "glob over folders", "list", "list of globs"])
def test_several_files_are_one_after_another_and_ids_are_unique(tmp_path, kind):
    folder = tmp_path / "shards"
    folder.mkdir()
    assert load_rows(kinds_of_sources(folder)[kind])["id"][:] == ["1", "2", "2#2", "3"]


def test_a_folder_of_parquet_shards_and_images_beside_each_file(folder):
    shards = folder / "shards"
    shards.mkdir()
    columns = {"messages": [QUESTION, ANSWER], "images": ["images/a.png"]}
    for number in (1, 0):
        row = columns | {"id": f"s{number}"}
        Dataset.from_list([row]).to_parquet(shards / f"part-{number}.parquet")
    assert load_rows(shards, folder)["id"][:] == ["s0", "s1"]
    (row, _) = load_rows(shards)
    assert row["images"][0]["path"] == str(shards / "images" / "a.png")
    write(shards, [llava()], "more.jsonl")
    with pytest.raises(DataError, match=r"holds \.jsonl and \.parquet files; name those you mean"):
        load_rows(shards)


def test_a_name_that_no_file_has(folder):
    with pytest.raises(DataError, match="no file has such a name"):
        load_rows(f"{folder}/*.parquet")
    with pytest.raises(DataError, match="list of data files is empty"):
        load_rows([])


@pytest.mark.parametrize(("name", "where"), [("data.jsonl", "line 3, row 2"), ("data.json", "line 1, row 2")])
def test_a_bad_row_is_named_by_file_line_number_and_id(folder, name, where):
    good = write(folder, [llava()], "good.json")
    bad = write(folder, [llava(id="a"), llava(id="b"), llava("Hi", id="c", kind=3)], name)
    *others, row = load_rows([good, bad])
    assert [other["problem"] for other in others] == [None] * 3
    assert row["problem"].startswith(f"{bad}, {where} (id 'c'): `kind` must be text")
    assert row["source"] == f"{bad}, {where}"


def test_a_bad_row_of_parquet_is_named_by_number_and_id(folder):
    rows = [
        {"id": name, "messages": [QUESTION, ANSWER], "images": images} for name, images in (("a", ["a"]), ("b", []))
    ]
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    Dataset.from_list(rows).save_to_disk(folder / "saved")
    for path in (folder / "rows.parquet", folder / "saved"):
        good, bad = load_rows(path)
        assert good["problem"] is None
        assert bad["problem"].startswith(f"{path}, row 1 (id 'b'): 1 image marks (<image>) but 0 images")


def test_the_second_start_reads_no_file(folder, monkeypatch):
    path = write(folder, [llava(id="a"), llava(id="b")])
    first = load_rows(path)
    assert all(os.environ["SWITCHKD_CACHE"] in file["filename"] for file in first.cache_files)

    def refuse(*_):
        raise AssertionError("the file was read")

    with monkeypatch.context() as patch:
        patch.setattr("switchkd.data.sources.raw_rows", refuse)
        again = load_rows(path)
        assert again.to_list() == first.to_list()
        assert again._fingerprint == first._fingerprint
        assert load_rows(path).select(range(1))._fingerprint == first.select(range(1))._fingerprint
    path.write_text(path.read_text().replace('"a"', '"aa"'))
    assert load_rows(path)["id"][:] == ["aa", "b"]


@pytest.mark.long
def test_what_was_half_written_is_not_taken_for_whole(folder, monkeypatch):
    path = write(folder, [llava(id=str(number)) for number in range(2500)], "data.jsonl")
    cut = path.read_text()
    path.write_text(cut[:-20])
    with pytest.raises(DataError, match="line 2500, column"):
        load_rows(path)
    script = f"""
import os, signal
from switchkd.data import sources
from switchkd.data.formats import load_rows
read = sources.raw_rows
def killed(path):
    for row in read(path):
        if row.number == 2100:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row
sources.raw_rows = killed
load_rows({str(path)!r})
"""
    path.write_text(cut)
    monkeypatch.setenv("SWITCHKD_CACHE", str(folder / "cache"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(folder.glob("cache/rows/**/*.arrow")), "nothing was written before the kill"
    assert len(load_rows(path)) == 2500


def test_a_file_that_changes_while_it_is_read_is_refused(folder, monkeypatch):
    path = write(folder, [llava(id="a")])
    read = sources.raw_rows

    def changing(source):
        yield from read(source)
        source.write_text(source.read_text() + "\n")

    monkeypatch.setattr(sources, "raw_rows", changing)
    with pytest.raises(DataError, match="changed while it was read"):
        load_rows(path)


def parquet_of(folder, images, **how):
    """One row for each image, in one row group."""
    kind = pa.list_(pa.struct([("bytes", pa.large_binary()), ("path", pa.string())]))
    turns = [[QUESTION, ANSWER]] * len(images)
    columns = {
        "id": [str(number) for number in range(len(images))],
        "messages": pa.array(turns),
        "images": pa.array([[{"bytes": image, "path": None}] for image in images], kind),
    }
    pq.write_table(pa.table(columns), folder / "pictures.parquet", store_schema=False, **how)
    return folder / "pictures.parquet"


def test_large_pictures_of_parquet_are_read_some_at_a_time(folder, monkeypatch):
    images = [bytes([number]) * 1000 for number in range(20)]
    path = parquet_of(folder, images)
    read, iterate = [], pq.ParquetFile.iter_batches

    def counted(file, size, **how):
        for batch in iterate(file, size, **how):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert len(load_rows(path)) == 20
    assert read == [20]
    read.clear()
    monkeypatch.setattr(containers, "_LARGE_GROUP_BYTES", 10_000)
    assert [raw.content["images"][0]["bytes"] for raw in containers.raw_rows(path)] == images
    assert read == [8, 8, 4]


def test_what_arrow_cannot_read_at_once_is_read_row_by_row_from_there_on(folder, monkeypatch):
    """Arrow fails where the pictures that it reads at a time are more than two gigabytes; here, where they are more than eight rows."""
    images = [bytes([number]) * 100 for number in range(30)]
    path = parquet_of(folder, images)
    iterate, asked, least = pq.ParquetFile.iter_batches, [], 1

    def limited(file, size, **how):
        asked.append(size)
        for number, batch in enumerate(iterate(file, size, **how)):
            if size > least and number == 2:
                raise pa.ArrowNotImplementedError("Nested data conversions not implemented for chunked array outputs")
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", limited)
    monkeypatch.setattr(containers, "_ROWS_AT_A_TIME", 10)
    assert [raw.content["images"][0]["bytes"] for raw in containers.raw_rows(path)] == images
    assert asked == [10, 1]
    least = 0
    with pytest.raises(DataError, match=r"pictures\.parquet, from row 0: not a readable Parquet file: Nested data"):
        list(containers.raw_rows(path))
