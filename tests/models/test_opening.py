"""Broken files of checkpoints: each is an error that names the file and the reason, and none is unexpected."""

import json
import re
import shutil

import pytest
from run_files import write_model

from switchkd.cli import main
from switchkd.models import load_pathway, opening
from switchkd.models.opening import load_config, load_processor

GONE = object()


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound")
    write_model(folder / "model", seed=1)
    return folder / "model"


@pytest.fixture
def model(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def entries(**changes):
    """Change entries of a JSON file; a dotted name reaches into objects."""

    def change(file):
        content = json.loads(file.read_text())
        for name, value in changes.items():
            *path, last = name.split("__")
            within = content
            for key in path:
                within = within[key]
            if value is GONE:
                del within[last]
            else:
                within[last] = value
        file.write_text(json.dumps(content))

    return change


def text(content):
    return lambda file: file.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


#: What is broken → its file, how, and what the message says besides the file's name.
CONFIGS = {
    "cut short": ("config.json", cut, "is not JSON"),
    "empty": ("config.json", text(""), "is not JSON"),
    "a list": ("config.json", text("[1, 2]"), "holds a list where a mapping"),
    "a string": ("config.json", text('"llava"'), "holds a str where a mapping"),
    "no UTF-8": ("config.json", text(b"\xff\xfe{}"), "is not JSON"),
    "nested without end": ("config.json", text("[" * 100_000), "is not JSON"),
    "missing": ("config.json", lambda file: file.unlink(), "config.json"),
    "no model_type": ("config.json", entries(model_type=GONE), "model_type"),
    "model_type of nothing": ("config.json", entries(model_type="llavva"), "llavva"),
    "model_type a number": ("config.json", entries(model_type=7), "model_type"),
    "model_type null": ("config.json", entries(model_type=None), "model_type"),
    "unsupported model_type": ("config.json", entries(model_type="clip"), "'clip' is not supported yet"),
    "text_config a list": ("config.json", entries(text_config=[1]), "cannot be used"),
    "text_config a string": ("config.json", entries(text_config="qwen2"), "cannot be used"),
    "text_config of nothing": ("config.json", entries(text_config__model_type="nothing"), "nothing"),
    "vision_config a number": ("config.json", entries(vision_config=3), "cannot be used"),
    "vision_config untested": ("config.json", entries(vision_config={"model_type": "vit"}), "has not been tested"),
    "hidden_size a string": ("config.json", entries(text_config__hidden_size="wide"), "hidden_size"),
    "hidden_size a list": ("config.json", entries(vision_config__hidden_size=[32]), "hidden_size"),
    "patch_size 0": ("config.json", entries(vision_config__patch_size=0), "ZeroDivisionError"),
    "image_size null": ("config.json", entries(vision_config__image_size=None), "image_size"),
    "image token a string": (
        "config.json", entries(image_token_id="<image>", image_token_index="<image>"), "image_token",
    ),
    "feature layer a string": ("config.json", entries(vision_feature_layer="last"), "vision_feature_layer"),
    "attention from the hub": (
        "config.json", entries(_attn_implementation="kernels-community/flash-attn"), "downloaded from the hub and run",
    ),
    "attention from the hub inside": (
        "config.json", entries(text_config___attn_implementation="org/kernel@main:fn"), "downloaded from the hub and run",
    ),
    "attention from the hub by part": (
        "config.json", entries(attn_implementation={"text_config": "org/kernel"}), "downloaded from the hub and run",
    ),
    "paged attention from the hub": ("config.json", entries(_attn_implementation="paged|org/kernel"), "downloaded from the hub and run"),
}  # fmt: skip
PROCESSORS = {
    "tokenizer cut short": ("tokenizer.json", cut, "is not JSON"),
    "tokenizer empty object": ("tokenizer.json", text("{}"), "cannot be used"),
    "tokenizer a list": ("tokenizer.json", text("[]"), "holds a list"),
    "tokenizer without model": ("tokenizer.json", entries(model=GONE), "cannot be used"),
    "tokenizer of no kind": ("tokenizer.json", entries(model__type="Nothing"), "cannot be used"),
    "tokenizer missing": ("tokenizer.json", lambda file: file.unlink(), "no vocabulary (tokenizer.json"),
    "tokenizer config cut short": ("tokenizer_config.json", cut, "is not JSON"),
    "special tokens as numbers": ("tokenizer_config.json", entries(eos_token=3), "tokenizer_config.json"),
    "processor cut short": ("processor_config.json", cut, "is not JSON"),
    "processor missing": ("processor_config.json", lambda file: file.unlink(), "processor_config.json"),
    "processor of no class": ("processor_config.json", entries(processor_class="Nothing"), "processor_config.json"),
    "image processor of no class": ("processor_config.json", entries(image_processor__image_processor_type="Nothing"), "cannot be used"),
    "image processor a string": ("processor_config.json", entries(image_processor="siglip"), "cannot be used"),
    "template unclosed": ("chat_template.jinja", text("{% for m in messages %}{{ m }}"), "is no Jinja template"),
    "template of no tag": ("chat_template.jinja", text("a\n{% nothing %}"), "line 2:"),
    "template unclosed expression": ("chat_template.jinja", text("{{ messages"), "is no Jinja template"),
    "template that takes hours to read": ("chat_template.jinja", text("{{ 3 ** (10 ** 9) }}"), "takes more than 2 seconds of computing"),
}  # fmt: skip
WEIGHTS = {
    "weights cut short": ("model.safetensors", cut, "cannot be used"),
    "weights empty": ("model.safetensors", text(""), "cannot be used"),
    "weights no safetensors": ("model.safetensors", text("x" * 100), "cannot be used"),
    "generation config cut short": ("generation_config.json", cut, "is not JSON"),
    "more layers than weights": (
        "config.json",
        entries(vision_config__num_hidden_layers=9),
        "missing keys",
    ),
    "heads that do not divide": ("config.json", entries(text_config__num_attention_heads=0), "cannot be used"),
    "activation of nothing": ("config.json", entries(text_config__hidden_act="gelub"), "gelub"),
}


@pytest.mark.parametrize("name", CONFIGS | PROCESSORS)
def test_a_broken_file_is_named_and_expected(model, sound, capsys, name):
    file, change, reason = (CONFIGS | PROCESSORS)[name]
    change(model / file)
    opened = load_config if name in CONFIGS else load_processor
    if name != "unsupported model_type":  # a config that others may use
        with pytest.raises((ValueError, OSError)) as caught:
            opened(model)
        assert reason in str(caught.value)
        assert str(model) in str(caught.value)
        assert file in str(caught.value) or "model_type" in reason + name or "missing" in name
    assert main(["doctor", "--student", str(model), "--teacher", str(sound)]) == 1
    said = capsys.readouterr().err
    assert "SWITCHKD_DEBUG" not in said
    assert " ".join(reason.split()) in said


@pytest.mark.parametrize("name", WEIGHTS)
def test_broken_weights_are_named(model, name):
    file, change, reason = WEIGHTS[name]
    change(model / file)
    with pytest.raises(ValueError, match=re.escape(str(model))) as caught:
        load_pathway(model)
    assert reason in str(caught.value)


def test_sound_files_are_opened(sound):
    assert load_config(sound).model_type == "llava"
    assert len(load_processor(sound).tokenizer) == 320
    assert load_pathway(sound).family.model_type == "llava"


def test_a_vocabulary_is_parsed_again_only_where_it_has_changed(model, monkeypatch):
    parsed, read = [], opening.read_object
    monkeypatch.setattr(opening, "read_object", lambda file: parsed.append(file.name) or read(file))
    for _ in range(3):
        load_processor(model)
        load_config(model)
    assert parsed.count("tokenizer.json") == 1
    cut(model / "tokenizer.json")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"tokenizer\.json is not JSON"):
            load_processor(model)
    assert parsed.count("tokenizer.json") == 3
