"""How many tokens a row may have, and what the doctor says about the rows' lengths."""

import io
import json

import pytest
import transformers as hf
from cases import open_tiny
from PIL import Image
from run_files import write_run
from tiny_families import BUILDS
from tiny_processors import tokenizer, without_torchvision

from switchkd.data.reader import LONGEST, Reader
from switchkd.doctor import Examined, check_lengths, check_memory
from switchkd.models.families import family_of
from switchkd.recipe.schema import Data, load_recipe
from switchkd.train.lengths import row_length
from switchkd.train.memory import Memory
from switchkd.train.stage import index_rows, open_run


def config(name="llava-siglip-qwen2", *, positions=None):
    made = BUILDS[name].config(16, 2)
    if positions:
        made.text_config.max_position_embeddings = positions
    return made


@pytest.mark.parametrize("name", BUILDS)
def test_every_family_says_how_many_positions_it_has(name):
    assert family_of(config(name, positions=777)).positions == 777


@pytest.mark.parametrize(
    ("given", "positions", "expected"),
    [(None, [4096], 4096), (None, [8192, 4096], 4096), (None, [131072, 262144], LONGEST), (512, [4096, 8192], 512)],
)
def test_the_length_is_the_recipes_or_what_all_models_have_positions_for(given, positions, expected):
    assert row_length(Data("rows.json", max_length=given), *(config(positions=each) for each in positions)) == expected


def test_a_picture_of_thirteen_tiles_is_read_where_a_recipe_names_no_length():
    """InternVL3's own sizes: 200 × 150 pixels are 4 × 3 tiles and the whole, 256 tokens each."""
    own = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    images = hf.GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, min_patches=1, max_patches=12)
    processor = without_torchvision(hf.InternVLProcessor, images, own, None, image_seq_length=256)
    file = io.BytesIO()
    Image.new("RGB", (200, 150)).save(file, "PNG")
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    row = {"id": "r", "messages": messages, "images": [{"bytes": file.getvalue(), "path": None}]}
    chosen = row_length(Data("rows.json"), config("internvl-qwen2", positions=32768))
    encoded = Reader(processor, max_length=chosen).encode(row)
    assert encoded.tokens.count(processor.image_token_id) == 3328
    with pytest.raises(
        ValueError, match=rf"but max_length is 2048; raise max_length to {encoded.whole_length}, or use"
    ):
        Reader(processor, max_length=2048).encode(row)
    assert Reader(processor, max_length=encoded.whole_length).encode(row).tokens == encoded.tokens


def test_a_run_reads_what_its_models_have_positions_for(tmp_path):
    file = write_run(tmp_path)
    file.write_text(file.read_text().replace(", max_length: 256", ", rows: 3"))
    data = tmp_path / "data" / "train.json"
    written = json.loads(data.read_text())
    written[1]["conversations"][-1]["value"] = "Yes. " * 100
    data.write_text(json.dumps(written))
    config_file = tmp_path / "teacher" / "config.json"
    sizes = json.loads(config_file.read_text())
    sizes["text_config"]["max_position_embeddings"] = 150
    config_file.write_text(json.dumps(sizes))
    recipe = load_recipe(file)
    run = open_run(recipe)
    assert run.reader.max_length == 150
    rows = index_rows(run, recipe.resolved_stages()[0], tmp_path)
    assert rows["length"][1] == 150 < rows["tokens"][1]
    assert rows["length"][0] == rows["tokens"][0] < 150


def examined(folder, *, limit=LONGEST, longer=0):
    """A tiny stage of three rows; `longer`: the first is longer by so many tokens."""
    opened = open_tiny(folder)
    whole = [opened.rows["tokens"][0] + longer, *opened.rows["tokens"][1:]]
    kept = [min(length, limit) for length in whole]
    opened.run.reader.max_length = limit
    rows = opened.rows.remove_columns(["tokens", "length"]).add_column("tokens", whole).add_column("length", kept)
    object.__setattr__(opened, "rows", rows)
    return Examined(opened)


def test_the_doctor_says_how_long_the_rows_are(tmp_path):
    (line,) = check_lengths.lengths(examined(tmp_path, longer=1000))
    assert line.level == "ok"
    assert line.detail.startswith("the longest row, 'row-0', has 1,0")
    assert "max_length is 32,768 (as many as the models have positions for)" in line.detail


def test_rows_that_are_cut_are_a_warning_with_the_length_that_keeps_them(tmp_path):
    one = examined(tmp_path, longer=1000, limit=600)
    longest = max(one.context.rows["tokens"])
    (line,) = check_lengths.lengths(one)
    assert line.level == "warning"
    assert f"the answers of 1 of 3 rows are cut: with data.max_length {longest} none is" in line.detail


def test_rows_beyond_a_models_positions_are_a_warning(tmp_path):
    one = examined(tmp_path, longer=1000)
    one.context.pair.teacher.family.config.text_config.max_position_embeddings = 500
    _, line = check_lengths.lengths(one)
    assert (line.level, line.check) == ("warning", "teacher's positions")
    assert "was made for 500 positions: set data.max_length to 500" in line.detail


def test_too_little_memory_says_for_which_rows_and_what_helps(tmp_path, monkeypatch):
    monkeypatch.setattr(check_memory, "_free_bytes", lambda device: 1000)
    monkeypatch.setattr(check_memory, "estimate", lambda *given: Memory(*[10**9] * 7, 10**10))
    one = examined(tmp_path)
    (line,) = check_memory.memory(one)
    assert line.level == "failed"
    longest = max(one.context.rows["length"])
    assert f"That is for 2 rows of {longest} tokens: lower train.per_device_train_batch_size" in line.detail
