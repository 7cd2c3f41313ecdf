"""Each form and each file that people bring → the rows of the same content in LLaVA JSON."""

import base64
import csv
import gzip
import io
import json
import logging
import pickle
import tarfile

import pytest
from datasets import Dataset, Features, Image, IterableDataset, Value
from PIL import Image as Pillow

from switchkd.data import hub_sets
from switchkd.data.errors import DataError
from switchkd.data.formats import load_rows
from switchkd.data.llava_rows import write_llava

QUESTIONS = ("What is it?", "And the colour?")
ANSWERS = ("A cat.", 'Red, as "said";\nnot blue.')


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Pillow.new("RGB", (8, 6), colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def content(folder, name="a"):
    return (folder / "images" / f"{name}.png").read_bytes()


def llava(*questions, answers=ANSWERS, image="images/a.png", **more):
    turns = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=False)):
        marked = "<image>\n" * (not number) * (image is not None) + question
        turns += [{"from": "human", "value": marked}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


def write(folder, rows, name="data.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pictures(row):
    return [Pillow.open(i["path"] or io.BytesIO(i["bytes"])).tobytes() for i in row["images"]]


def comparable(rows):
    """Of every row all but where it stands, its images by their pixels."""
    return [
        {key: value for key, value in row.items() if key not in ("source", "images")} | {"images": pictures(row)}
        for row in rows
    ]


def expected(folder, *rows):
    return comparable(load_rows(write(folder, rows, "expected.jsonl")))


def user(*content_):
    return {"role": "user", "content": list(content_) if len(content_) > 1 else content_[0]}


def assistant(text=ANSWERS[0]):
    return {"role": "assistant", "content": text}


Q, A = QUESTIONS[0], ANSWERS[0]
TEXT = {"type": "text", "text": Q}
DATA_URL = "data:image/png;base64,"
#: name → (row, the same in LLaVA JSON). "{root}" is the folder, "{url}" a picture in base64.
FORMS = {
    "LLaVA": (llava(Q), llava(Q)),
    "LLaVA with roles of others": (
        {"conversations": [{"from": "user", "value": f"<image>\n{Q}"}, {"from": "assistant", "value": A}], "image": "images/a.png"},
        llava(Q),
    ),
    "ShareGPT with images and system": (
        {
            "system": "Be brief.",
            "images": ["images/a.png", "images/b.png"],
            "conversations": [{"from": "human", "value": f"<image><image>{Q}"}, {"from": "gpt", "value": A}],
        },
        {
            "image": ["images/a.png", "images/b.png"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": f"<image>\n<image>\n{Q}"},
                {"from": "gpt", "value": A},
            ],
        },
    ),
    "ShareGPT with roles": (
        {"conversations": [user(f"<image>\n{Q}"), assistant()], "image": "images/a.png"},
        llava(Q),
    ),
    "messages and images": ({"messages": [user({"type": "image"}, TEXT), assistant()], "images": ["images/a.png"]}, llava(Q)),
    "messages with marks": ({"messages": [user(f"<image>{Q}"), assistant()], "images": ["images/a.png"]}, llava(Q)),
    "messages, image_url as data": (
        {"messages": [user({"type": "image_url", "image_url": {"url": "{url}", "detail": None}}, TEXT), assistant()]},
        llava(Q),
    ),
    "messages, image_url as a path": (
        {"messages": [user({"type": "image_url", "image_url": "images/a.png"}, TEXT), assistant()]},
        llava(Q),
    ),
    "messages, input_image": (
        {"messages": [user({"type": "input_image", "image_url": "{url}"}, TEXT | {"type": "input_text"}), assistant()]},
        llava(Q),
    ),
    "messages, the picture in its part": (
        {"messages": [user({"type": "image", "image": "images/a.png"}, TEXT), assistant()]},
        llava(Q),
    ),
    "messages, parts without types": ({"messages": [user({"image": "images/a.png"}, {"text": Q}), assistant()]}, llava(Q)),
    "messages, the picture in base64": (
        {"messages": [user({"type": "image", "base64": "{base64}"}, TEXT), assistant([{"type": "text", "text": A}])]},
        llava(Q),
    ),
    "messages and images as data": ({"messages": [user(f"<image>{Q}"), assistant()], "images": ["{url}"]}, llava(Q)),
    "TRL, texts": ({"prompt": Q, "completion": A, "image": "images/a.png"}, llava(Q)),
    "TRL, messages": ({"prompt": [user(Q)], "completion": [assistant()], "images": ["images/a.png"]}, llava(Q)),
    "TRL, messages with an answer that is not learned": (
        {
            "prompt": [user({"type": "image"}, TEXT), assistant("No."), user("Sure?")],
            "completion": [assistant()],
            "images": ["images/a.png"],
        },
        {
            "image": "images/a.png",
            "conversations": [
                {"from": "human", "value": f"<image>\n{Q}"},
                {"from": "gpt", "value": "No.", "loss": False},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": A},
            ],
        },
    ),
    "query and response": ({"query": f"<image>{Q}", "response": A, "images": ["images/a.png"]}, llava(Q)),
    "query, response, history and system": (
        {"system": "S", "history": [[Q, A]], "query": QUESTIONS[1], "response": ANSWERS[1], "images": "images/a.png"},
        llava(*QUESTIONS, system="S"),
    ),
    "alpaca": ({"instruction": Q, "input": "", "output": A, "image": None}, llava(Q, image=None)),
    "alpaca with an input": ({"instruction": "Read.", "input": Q, "output": A, "images": ["images/a.png"]}, llava(f"Read.\n{Q}")),
    "VQA": ({"question": Q, "answer": A, "image": "images/a.png", "kind": "object"}, llava(Q, kind="object")),
    "VQA, a number": ({"question": Q, "answer": 3, "image": "images/a.png"}, llava(Q, answers=["3"])),
    "VQA, answers that agree": (
        {"question": Q, "answers": [{"answer": A, "answer_id": 1}, {"answer": A, "answer_id": 2}], "image": "images/a.png"},
        llava(Q),
    ),
    "VQA, two pictures": (
        {"question": Q, "answer": A, "images": ["images/b.png", "images/a.png"]},
        llava(f"<image>\n{Q}", image=["images/b.png", "images/a.png"]),
    ),
    "The Cauldron": (
        {
            "images": ["images/a.png"],
            "texts": [{"user": q, "assistant": a, "source": "x"} for q, a in zip(QUESTIONS, ANSWERS, strict=True)],
        },
        llava(*QUESTIONS),
    ),
    "an absolute path": ({"question": Q, "answer": A, "image": "{root}/images/a.png"}, llava(Q)),
}  # fmt: skip


def filled(folder, row):
    text = json.dumps(row).replace("{root}", str(folder))
    encoded = base64.b64encode(content(folder)).decode()
    return json.loads(text.replace("{url}", DATA_URL + encoded).replace("{base64}", encoded))


@pytest.mark.parametrize(("row", "same"), FORMS.values(), ids=FORMS)
def test_a_form_gives_the_rows_of_llava_json(folder, row, same):
    assert comparable(load_rows(write(folder, [filled(folder, row)]))) == expected(folder, same)


#: All containers hold these: two rows with a picture each.
ROWS = [
    {
        "id": f"r{number}",
        "question": QUESTIONS[number],
        "answer": ANSWERS[number],
        "image": f"images/{'ab'[number]}.png",
    }
    for number in range(2)
]
SAME = [llava(row["question"], answers=[row["answer"]], image=row["image"], id=row["id"]) for row in ROWS]


def table(folder, name, separator=",", opened=open):
    with opened(folder / name, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter=separator)
        writer.writeheader()
        writer.writerows(ROWS)
    return folder / name


def packed(folder, name, text):
    (folder / name).write_bytes(gzip.compress(text.encode()))
    return folder / name


def plain(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def add(archive, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def archive(folder, name, rows=ROWS, more=()):
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as file:
        for row in rows:
            letter = row["image"][-5]
            add(
                file, f"part/{row['id']}.jpg.png" if letter == "b" else f"part/{row['id']}.png", content(folder, letter)
            )
            add(file, f"part/{row['id']}.json", json.dumps({k: v for k, v in row.items() if k != "image"}).encode())
            for ending, data in more:
                add(file, f"part/{row['id']}.{ending}", data)
    return folder / name


def in_texts(folder):
    with tarfile.open(folder / "texts.tar", "w") as file:
        for row in ROWS:
            texts = {"question.txt": row["question"].encode(), "answer.txt": row["answer"].encode()}
            for ending, data in (texts | {"png": content(folder, row["image"][-5])}).items():
                add(file, f"{row['id']}.{ending}", data)
    return folder / "texts.tar"


def picture_folder(folder, as_table=False):
    target = folder / "pictures"
    target.mkdir()
    rows = []
    for row in ROWS:
        (target / f"{row['id']}.png").write_bytes(content(folder, row["image"][-5]))
        rows.append({key: value for key, value in row.items() if key != "image"} | {"file_name": f"{row['id']}.png"})
    (target / "license.json").write_text("{}")
    if as_table:
        with (target / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write(target, rows, "metadata.jsonl")
    return target


def embedded(folder, kind=dict):
    rows = [row | {"image": {"bytes": content(folder, row["image"][-5]), "path": "x"}} for row in ROWS]
    if kind is dict:
        return rows
    return [row | {"image": Pillow.open(io.BytesIO(row["image"]["bytes"]))} for row in rows]


def dataset(folder):
    features = {name: Value("string") for name in ("id", "question", "answer")} | {"image": Image()}
    return Dataset.from_list(embedded(folder), features=Features(features))


def saved(folder):
    dataset(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def shards(folder):
    (folder / "shards").mkdir()
    for number in (1, 0):
        Dataset.from_list(embedded(folder)[number : number + 1]).to_parquet(
            folder / "shards" / f"part-{number}.parquet"
        )
    return folder / "shards"


def copy_of_a_hub_set(folder):
    """A folder as the hub has them: two configurations, two splits."""
    for config, rows in (("cats", dataset(folder)), ("dogs", dataset(folder).select([]))):
        (folder / "set" / config).mkdir(parents=True)
        for split in ("train", "test"):
            rows.to_parquet(folder / "set" / config / f"{split}-00000-of-00001.parquet")
    card = [
        {"config_name": name, "data_files": [{"split": s, "path": f"{name}/{s}-*"} for s in ("train", "test")]}
        for name in ("cats", "dogs")
    ]
    (folder / "set" / "README.md").write_text("---\nconfigs: " + json.dumps(card) + "\n---\n# Cats\n")
    return f"{folder}/set:cats:train"


SOURCES = {
    "JSON list": lambda f: plain(f, "d.json", json.dumps(ROWS)),
    "JSON list over lines": lambda f: plain(f, "d.json", json.dumps(ROWS, indent=2)),
    "JSON lines": lambda f: write(f, ROWS),
    "JSON objects over lines": lambda f: plain(f, "d.json", "\n".join(json.dumps(row, indent=1) for row in ROWS)),
    "JSON in an object": lambda f: plain(f, "d.json", json.dumps({"data": ROWS})),
    "JSON in an object, over lines": lambda f: plain(f, "d.json", json.dumps({"train": ROWS}, indent=2)),
    "JSON in an object behind others": lambda f: plain(f, "d.json", json.dumps({"version": 1, "data": ROWS, "info": {"a": [1]}})),
    "packed JSON lines": lambda f: packed(f, "d.jsonl.gz", "".join(json.dumps(row) + "\n" for row in ROWS)),
    "packed JSON": lambda f: packed(f, "d.json.gz", json.dumps({"data": ROWS}, indent=2)),
    "CSV": lambda f: table(f, "d.csv"),
    "CSV with semicolons": lambda f: table(f, "d.csv", ";"),
    "TSV": lambda f: table(f, "d.tsv", "\t"),
    "packed CSV": lambda f: table(f, "d.csv.gz", opened=gzip.open),
    "Parquet": lambda f: Dataset.from_list(ROWS).to_parquet(f / "d.parquet") and f / "d.parquet",
    "folder of Parquet": shards,
    "glob": lambda f: f"{shards(f)}/*.parquet",
    "list": lambda f: [write(f, ROWS[:1], "1.jsonl"), str(plain(f, "2.json", json.dumps(ROWS[1:])))],
    "picture folder": picture_folder,
    "picture folder with a table": lambda f: picture_folder(f, as_table=True),
    "archive": lambda f: archive(f, "d.tar"),
    "packed archive": lambda f: archive(f, "d.tar.gz"),
    "archive of texts": in_texts,
    "saved set": saved,
    "copy of a set of the hub": copy_of_a_hub_set,
    "Dataset": dataset,
    "Dataset in files": lambda f: Dataset.from_parquet([str(path) for path in sorted(shards(f).glob("*"))], cache_dir=str(f / "c")),
    "rows": embedded,
    "rows with pictures of Pillow": lambda f: embedded(f, kind=Pillow),
    "an iterator": lambda f: iter(embedded(f, kind=Pillow)),
    "IterableDataset": lambda f: IterableDataset.from_generator(lambda: iter(embedded(f, kind=Pillow))),
    "Datasets in a list": lambda f: [dataset(f).select([0]), dataset(f).select([1])],
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_source_gives_the_rows_of_llava_json(folder, source):
    data = source(folder)
    in_shards = (isinstance(data, str) and "*" in data) or "shards" in str(data) or "pictures" in str(data)
    rows = load_rows(data, None if in_shards or "set" in str(data) else folder)
    assert comparable(rows) == expected(folder, *SAME)


def test_several_answers_that_are_right_are_kept_and_the_one_that_most_say_is_learned(folder):
    people = [{"answer": text, "answer_id": number} for number, text in enumerate(["red", "blue", "blue"])]
    path = write(folder, [{"question": Q, "answers": people, "image": "images/a.png", "metric": "vqa"}])
    (row,) = load_rows(path, columns={"accepted": "answers"})
    assert (row["accepted"], row["metric"]) == (["red", "blue", "blue"], "vqa")
    assert row["messages"][1]["content"][0]["text"] == "blue"
    write_llava(path, folder / "out.jsonl", columns={"accepted": "answers"})
    assert comparable(load_rows(folder / "out.jsonl")) == comparable([row])


def test_columns_of_other_names(folder):
    rows = [{"q": Q, "gold": A, "img": "images/a.png", "answers": ["x", "y"], "n": "7"}]
    columns = {"question": "q", "answer": "gold", "image": "img", "id": "n"}
    assert comparable(load_rows(write(folder, rows), columns=columns)) == expected(folder, llava(Q, id="7"))
    captions = write(folder, [{"text": A, "image": "images/a.png"}], "captions.jsonl")
    assert comparable(load_rows(captions, columns={"answer": "text"})) == expected(folder, llava(""))
    dialogue = write(folder, [{"talk": llava(Q)["conversations"], "image": "images/a.png"}], "talk.jsonl")
    assert comparable(load_rows(dialogue, columns={"conversations": "talk"})) == expected(folder, llava(Q))
    both = write(folder, [{"question": "Not this.", "q": Q, "answer": A, "image": "images/a.png"}], "both.jsonl")
    assert comparable(load_rows(both, columns={"question": "q"})) == expected(folder, llava(Q))
    with pytest.raises(DataError, match=r"data\.columns names `picture` as image, and no row"):
        load_rows(write(folder, [{"q": Q, "answer": A}], "typo.jsonl"), columns={"question": "q", "image": "picture"})
    with pytest.raises(DataError, match="names 'q', which is none of id, question, answer"):
        load_rows(both, columns={"q": "question"})


vqa = {"question": Q, "answer": A, "image": "images/a.png"}


def test_what_is_not_read_is_named(folder, caplog):
    rows = [
        vqa | {"source": "web"},
        {"texts": [{"user": Q, "assistant": A, "source": "x"}], "images": ["images/a.png"]},
    ]
    rows[1]["texts"][0]["user"] = "<image>" + Q
    parts = [{"type": "image", "image": "images/a.png", "min_pixels": 4}, TEXT]
    with caplog.at_level(logging.WARNING):
        load_rows(write(folder, [*rows, {"messages": [user(*parts), assistant()]}]))
        load_rows(plain(folder, "d.json", json.dumps({"info": 1, "data": rows, "more": [1]})))
    said = [record.getMessage() for record in caplog.records]
    assert any("`source` (1), `texts.source` (1), `messages.content.min_pixels` (1)" in line for line in said)
    assert any("rows are read from `data`; what else the file holds is not read: info, more" in line for line in said)


def bad_files(folder):
    wrong = "a,b\n1,2\n"
    return {
        "two lists": (plain(folder, "two.json", json.dumps({"train": [vqa], "test": [vqa]})), "has the lists `train` and `test`"),
        "cut in an object": (plain(folder, "cut.json", json.dumps({"data": [vqa]})[:-9]), r"cut\.json, line 1, column \d+: not valid JSON"),
        "cut over lines": (plain(folder, "over.json", json.dumps(vqa, indent=1)[:-9]), r"over\.json, line 4, column \d+"),
        "packed and cut": (_cut(packed(folder, "c.jsonl.gz", json.dumps(vqa) * 99)), "not a readable gzip file"),
        "a table of unknown columns": (plain(folder, "wrong.csv", wrong), "row 0 .*unknown format.*keys a, b"),
        "a table with a name twice": (plain(folder, "twice.csv", "a,a\n1,2\n"), "two columns have one name: a, a"),
        "a table that is cut": (plain(folder, "cut.csv", 'question,answer\nWhat,"A cat'), r"cut\.csv, line 2: not a readable table"),
        "a table without rows": (plain(folder, "none.csv", "question,answer\n"), "has no rows"),
        "no archive": (plain(folder, "no.tar", "x" * 2000), "not a readable archive"),
        "an archive that is cut": (_cut(archive(folder, "cut.tar"), 700), "not a readable archive"),
    }  # fmt: skip


def _cut(path, size=60):
    path.write_bytes(path.read_bytes()[:size])
    return path


def test_a_file_that_cannot_be_read_says_why(folder):
    import re

    for path, message in bad_files(folder).values():
        with pytest.raises(DataError) as caught:
            load_rows(path)
        assert re.search(message, str(caught.value))
        assert str(path) in str(caught.value)


def test_a_ragged_line_of_a_table_is_a_bad_row(folder):
    rows = load_rows(plain(folder, "d.csv", f"question,answer\n{Q},{A}\nWhat?,a,b\n\n{Q},{A}\n"))
    assert [bool(row["problem"]) for row in rows] == [False, True, False]
    assert "line 3, row 1" in rows[1]["problem"]
    assert "3 cells and the head line 2" in rows[1]["problem"]


class Canary:
    def __reduce__(self):
        return (exec, ("raise SystemExit('its code ran')",))


def test_nothing_but_pictures_json_and_text_of_an_archive_is_decoded(folder, caplog):
    harm = pickle.dumps(Canary())
    more = [(ending, harm) for ending in ("pkl", "pyd", "pt", "pth", "npy", "cls")]
    with caplog.at_level(logging.WARNING):
        rows = load_rows(archive(folder, "d.tar", more=more))
    assert comparable(rows) == expected(folder, *SAME)
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert all(f"`{ending}` (2)" in line for ending, _ in more)
    with pytest.raises(DataError, match="has `mp4`, which is not read; videos, as files"):
        load_rows(archive(folder, "v.tar", ROWS[:1], [("mp4", b"x")]))


def test_no_row_of_a_damaged_archive_is_lost_without_a_word(folder):
    whole, second = archive(folder, "whole.tar").read_bytes(), archive(folder, "b.tar").read_bytes()
    with tarfile.open(folder / "whole.tar") as file:
        begin = [member.offset for member in file][2]  # of the second row
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in file)
    flipped = bytearray(whole)
    flipped[begin + 5] ^= 0xFF
    packed_twice = gzip.compress(whole) + gzip.compress(second)
    damaged = {
        "cut.tar": (whole[:begin], f"ends at byte {begin:,} without an end mark"),
        "head.tar": (whole[: begin + 100], f"member at byte {begin:,} has a damaged header"),
        "flip.tar": (flipped, f"member at byte {begin:,} has a damaged header"),
        "flip.tar.gz": (gzip.compress(flipped), f"member at byte {begin:,} has a damaged header"),
        "crc.tar.gz": (gzip.compress(whole)[:-8] + b"\0" * 8, "not a readable archive"),
        "unmarked.tar": (whole[:end], f"ends at byte {end:,} without an end mark"),
        "joined.tar": (whole + second, f"end mark is at byte {end:,}, and more than zeros is behind it"),
        "joined.tar.gz": (packed_twice, f"end mark is at byte {end:,}, and more than zeros is behind it"),
    }
    for name, (content, message) in damaged.items():
        (folder / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            load_rows(folder / name)
        assert message in str(caught.value)
        assert f"{folder / name}: not a readable archive" in str(caught.value)
    for size in (end + 512, end + 1024, end + 1500):  # a cut inside the end mark, or behind it
        (folder / f"{size}.tar").write_bytes(whole[:size])
        assert comparable(load_rows(folder / f"{size}.tar")) == comparable(load_rows(folder / "whole.tar"))


OTHERS = {
    "below": ("one.jsonl", "more/two.jsonl", r"more/two\.jsonl.* is not read.*\*\*/\*\.jsonl"),
    "packed otherwise": ("a.jsonl", "b.jsonl.zst", r"b\.jsonl\.zst is not read"),
    "of another name": ("a.jsonl", "c.ndjson", r"c\.ndjson is not read"),
    "beside metadata": ("metadata.jsonl", "train.jsonl", r"train\.jsonl is not read"),
}


@pytest.mark.parametrize(("read", "other", "message"), OTHERS.values(), ids=OTHERS)
def test_no_data_file_of_a_folder_is_left_unread_without_a_word(tmp_path, read, other, message):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    write(tmp_path, [{"question": Q, "answer": A}], other)
    write(tmp_path, [{"question": Q, "answer": A}], read)
    with pytest.raises(DataError, match=message):
        load_rows(tmp_path)
    assert len(load_rows(f"{tmp_path}/{read[0]}*.jsonl")) == 1


def test_links_in_an_archive_are_not_followed(folder):
    with tarfile.open(folder / "l.tar", "w") as file:
        link = tarfile.TarInfo("x.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        file.addfile(link)
        add(file, "x.json", json.dumps({"question": Q, "answer": A}).encode())
    with pytest.raises(DataError, match=r"'x\.png' is a link or no file"):
        load_rows(folder / "l.tar")


def test_pictures_of_an_archive_stand_in_the_order_of_its_json(folder):
    with tarfile.open(folder / "o.tar", "w") as file:
        for name in "ab":
            add(file, f"x.{name}.png", content(folder, name))
        add(file, "x.json", json.dumps({"question": Q, "answer": A, "images": ["x.b.png", "x.a.png"]}).encode())
    (row,) = load_rows(folder / "o.tar")
    assert pictures(row) == [pictures({"images": [{"path": folder / "images" / f"{name}.png"}]})[0] for name in "ba"]


def test_splits_and_configurations_of_a_copy_of_a_hub_set(folder):
    name = copy_of_a_hub_set(folder).removesuffix(":train")
    with pytest.raises(DataError, match=r"set:cats: has the splits train, test; name one: .*set:cats:train"):
        load_rows(name)
    with pytest.raises(DataError, match=r"set::train: .*cats.*dogs"):
        load_rows(f"{folder}/set::train")
    first = load_rows(f"{name}:train")
    assert load_rows(f"{name}:train")._fingerprint == first._fingerprint
    assert len(load_rows(f"{name}:test[:1]")) == 1


@pytest.mark.parametrize(
    "path", ["../images/*", "/etc/*", "https://example.org/x.parquet", "zip://x::https://example.org/x"]
)
def test_a_card_that_names_files_elsewhere_is_refused(folder, path):
    copy_of_a_hub_set(folder)
    (folder / "set" / "README.md").write_text(f"---\nconfigs: [{{config_name: cats, data_files: '{path}'}}]\n---\n")
    with pytest.raises(DataError, match="a file outside of its folder"):
        load_rows(f"{folder}/set:cats:train")


@pytest.mark.parametrize("name", ["owner/name", "owner/name:config:train", "owner/name::train[:10]"])
def test_a_name_of_the_hub_offline_says_so(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError) as caught:
        load_rows(name)
    assert str(caught.value).startswith(f"{name}: no such file or folder, and as a data set of the Hugging Face hub: ")
    assert "It is offline (HF_HUB_OFFLINE): load it once where there is a network" in str(caught.value)


def test_a_name_of_the_hub_is_loaded_with_its_configuration_and_split(folder, monkeypatch):
    asked = []
    rows = dataset(folder)

    class Builder:
        info = type("Info", (), {"splits": {"train": None, "test": None}})
        config = type("Config", (), {"data_files": None})
        cache_dir = "cache/owner___name/cats/0.0.0/digest"

    monkeypatch.setattr(hub_sets.datasets, "load_dataset_builder", lambda *given: Builder())
    monkeypatch.setattr(hub_sets.datasets, "load_dataset", lambda *given, **how: asked.append((*given, how)) or rows)
    assert comparable(load_rows("owner/name:cats:train[:2]")) == expected(folder, *SAME)
    assert asked == [("owner/name", "cats", {"split": "train[:2]", "streaming": False})]


@pytest.mark.parametrize("name", ["owner/name.jsonl", "data/train.csv", "data.json", "a/b/c", "/a/b"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=r"no such file or folder$"):
        load_rows(name)


def test_rows_in_memory_are_canonical_once(folder):
    rows = load_rows(embedded(folder))
    assert load_rows(rows) is rows
    assert rows.cache_files == []
    for wrong, message in (
        ({"train": 1}, "the data are named things"),
        ([], "list of data files is empty"),
    ):
        with pytest.raises(DataError, match=message):
            load_rows(wrong)


def test_an_upright_picture_of_pillow_stays_upright(folder):
    from switchkd.data.images import open_image

    picture = Pillow.new("RGB", (4, 3))
    picture.getexif()[0x0112] = 6
    (row,) = load_rows([{"question": Q, "answer": A, "image": picture}])
    assert open_image(row["images"][0]).size == (3, 4)
