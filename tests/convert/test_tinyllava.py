"""TinyLLaVA checkpoints in both layouts become LLaVA models with the same logits, and come back byte for byte."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tinyllava_files import IMAGE_SIZE, IMAGE_TOKEN_INDEX, PATCH, ROWS, TURNS, Reference
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from switchkd.convert import convert, tinyllava
from switchkd.data.template_choice import choose_format
from switchkd.models import load_pathway

TOKENS = (IMAGE_SIZE // PATCH) ** 2 - 1  # the `patch` strategy drops the first, although SigLIP has no class token
PICTURE = Image.effect_noise((50, 20), 80).convert("RGB")
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is in the image?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A red circle."}]},
    {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Left."}]},
]


def reference_ids(folder: Path) -> list[int]:
    """The conversation in TinyLLaVA's way: the text around `<image>` tokenised piece by piece, -200 in between."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, after = (tokenizer(piece).input_ids for piece in TURNS.split("<image>"))
    return [*before, IMAGE_TOKEN_INDEX, *after]


def whole_state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("layout", "build"),
    [
        ("whole", {}),
        ("sharded", {"tied": False}),
        ("folders", {}),
        ("folders", {"vision": "clip", "tied": False}),
        ("whole", {"language": "llama"}),
    ],
    ids=str,
)
def test_logits_are_the_reference_s_from_the_picture_to_the_head(layout, build, tmp_path, caplog):
    caplog.set_level(logging.INFO, "switchkd")
    reference = Reference(**build)
    source = reference.write(tmp_path / "source", layout)
    convert(str(source), tmp_path / "llava")
    assert "its chat template is assumed to be Vicuna's" in caplog.text
    assert f"put that template into {tmp_path / 'llava' / 'chat_template.jinja'}" in caplog.text
    assert (tmp_path / "llava" / "chat_template.jinja").is_file()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "llava").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    assert isinstance(model, LlavaForConditionalGeneration)

    text = processor.apply_chat_template(MESSAGES)
    inputs = processor(images=PICTURE, text=text, return_tensors="pt")
    tokens = TOKENS + (reference.vision == "clip")  # CLIP's first token is its class token, so every patch stays
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == tokens
    expected = reference.logits(reference_ids(source), inputs["pixel_values"])
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    assert logits.shape == expected.shape == (len(reference_ids(source)) - 1 + tokens, ROWS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1
    other = reference.logits(reference_ids(source), inputs["pixel_values"].flip(-1))
    assert (other - expected).abs().max() > 1e-3  # the picture matters


@pytest.mark.parametrize("layout", ["whole", "sharded", "folders"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_round_trip_keeps_every_byte_and_name(layout, dtype, tmp_path):
    reference = Reference(dtype=dtype)
    source = reference.write(tmp_path / "source", layout)
    convert(str(source), tmp_path / "llava")
    convert(str(tmp_path / "llava"), tmp_path / "back")
    Reference(dtype=dtype).write(tmp_path / "one file", "whole")
    expected, found = whole_state(tmp_path / "one file"), whole_state(tmp_path / "back")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name
    # and the config says what TinyLLaVA's said
    written, back = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    for key in written.keys() - {"text_config", "vision_config", "torch_dtype", "transformers_version"}:
        assert back[key] == written[key], key
    for part in ("text_config", "vision_config"):
        for key in written[part].keys() - {"_name_or_path", "architectures", "torch_dtype"}:
            assert back[part][key] == written[part][key], (part, key)
    # what came back is a TinyLLaVA checkpoint
    convert(str(tmp_path / "back"), tmp_path / "again")
    again, llava = whole_state(tmp_path / "again"), whole_state(tmp_path / "llava")
    assert again.keys() == llava.keys()
    assert all(torch.equal(again[name], llava[name]) for name in llava)


def test_the_image_token_gets_a_free_row_and_answers_are_marked(tmp_path):
    source = Reference().write(tmp_path / "source")
    convert(str(source), tmp_path / "llava")
    config = load_pathway(tmp_path / "llava").model.config
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    assert len(AutoTokenizer.from_pretrained(source)) == 317
    assert config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>") == 317
    assert config.text_config.vocab_size == ROWS
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    # the saved template renders TinyLLaVA's text, and the collator takes it as it is
    assert processor.apply_chat_template(MESSAGES) == TURNS
    format = choose_format(processor)
    assert format.template == processor.chat_template
    tokens = format.tokenize(MESSAGES, ["<image>" * TOKENS])
    answers = [token for token, is_answer in zip(tokens.input_ids, tokens.is_answer, strict=True) if is_answer]
    assert processor.tokenizer.decode(answers) == " A red circle.<|endoftext|> Left.<|endoftext|>"


def test_padded_images_are_padded_with_the_mean_colour(tmp_path):
    reference = Reference()
    source = reference.write(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "image_aspect_ratio": "pad"}))
    convert(str(source), tmp_path / "llava")
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    square = Image.new("RGB", (50, 50), (127, 127, 127))
    square.paste(PICTURE, (0, 15))
    padded, expected = (
        processor.image_processor(image, return_tensors="pt")["pixel_values"] for image in (PICTURE, square)
    )
    assert torch.equal(padded, expected)
    assert padded.shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    convert(str(tmp_path / "llava"), tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["image_aspect_ratio"] == "pad"


def test_towers_saved_by_transformers_5_are_read_too(tmp_path):
    source = Reference().write(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    new = {name.replace("_vision_tower.vision_model.", "_vision_tower."): tensor for name, tensor in tensors.items()}
    assert new.keys() != tensors.keys()
    save_file(new, source / "model.safetensors", metadata={"format": "pt"})
    convert(str(source), tmp_path / "llava")
    convert(str(tmp_path / "llava"), tmp_path / "back")
    back = whole_state(tmp_path / "back")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_a_llava_of_ours_is_exported_under_the_names_it_is_given(tmp_path):
    convert(str(Reference().write(tmp_path / "source")), tmp_path / "llava")
    config = json.loads((tmp_path / "llava" / "config.json").read_text())
    del config["tinyllava"]
    (tmp_path / "llava" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"does not say what TinyLLaVA should call its parts: give --language and --vision"
    ):
        convert(str(tmp_path / "llava"), tmp_path / "back")
    assert not (tmp_path / "back").exists()
    convert(
        str(tmp_path / "llava"), tmp_path / "back", language="Qwen/Qwen2.5-3B", vision="google/siglip-base-patch16-224"
    )
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert written["llm_model_name_or_path"] == written["tokenizer_name_or_path"] == "Qwen/Qwen2.5-3B"
    assert written["vision_config"]["model_name_or_path"] == "google/siglip-base-patch16-224"
    assert (written["connector_type"], written["image_token_index"]) == ("mlp2x_gelu", IMAGE_TOKEN_INDEX)


def test_a_name_on_the_hub_is_fetched_without_code_and_only_if_it_can_be_converted(tmp_path, monkeypatch):
    source = Reference().write(tmp_path / "source")
    asked = []

    def fetch(name, **patterns):
        asked.append((name, patterns))
        return str(source)

    monkeypatch.setattr(tinyllava, "snapshot_download", fetch)
    convert("someone/TinyLLaVA-0.5B", tmp_path / "llava")
    config, whole = {"allow_patterns": ["*.json"]}, {"ignore_patterns": ["*.py", "*.md"]}
    assert asked == [("someone/TinyLLaVA-0.5B", config), ("someone/TinyLLaVA-0.5B", whole)]
    asked.clear()
    edit(source, connector_type="LDPNetV2")
    with pytest.raises(ValueError, match="its connector is LDPNetV2"):
        convert("someone/Switch-KD-1.8B", tmp_path / "other")
    assert asked == [("someone/Switch-KD-1.8B", config)]
    with pytest.raises(ValueError, match="no/such/folder is neither a checkpoint directory nor the name"):
        convert("no/such/folder", tmp_path / "other")


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def weights(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


HEAD = "language_model.lm_head.weight"
WRONG = {
    "another connector": (lambda f: edit(f, connector_type="resampler"), r"its connector is resampler\. Supported is mlp2x_gelu"),
    "a deeper mlp": (lambda f: edit(f, connector_type="mlp3x_gelu"), r"its connector is mlp3x_gelu"),
    "the authors' projector by its name": (
        lambda f: edit(f, model_type="mindvl", connector_type=None, projector={"type": "LDPNetV2"}),
        r"its connector is LDPNetV2, which pools visual tokens \(576 to 144.*Supported is mlp2x_gelu",
    ),
    "the authors' projector by its tensors": (
        lambda f: weights(f, lambda t: t.update({"projector.peg.peg.0.weight": torch.ones(3)})), r"its connector is LDPNetV2",
    ),
    "another model": (lambda f: edit(f, model_type="phi", connector_type=None), r"is a phi, a language model that sees no images"),
    "another strategy": (lambda f: edit(f, vision_feature_select_strategy="all"), r"select_strategy is 'all'; supported: patch"),
    "tiles": (lambda f: edit(f, image_aspect_ratio="anyres"), r"image_aspect_ratio is 'anyres'; supported: square, pad"),
    "adapters": (lambda f: (f / "adapter_config.json").write_text("{}"), r"holds LoRA adapters: merge them"),
    "no config": (lambda f: (f / "config.json").unlink(), r"has no config.json"),
    "no architecture": (lambda f: edit(f, text_config=None), r"has no text_config with a model_type"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"neither model.safetensors nor the folders language_model, vision_tower"),
    "a tensor missing": (
        lambda f: weights(f, lambda t: t.pop("connector._connector.2.bias")),
        r"105 tensors where a llava of this config has 106: 1 missing \(connector\._connector\.2\.bias\)",
    ),
    "a tensor too many": (
        lambda f: weights(f, lambda t: t.update({"connector._connector.4.bias": torch.ones(2)})),
        r"107 tensors where .* has 106: 1 unexpected \(connector\._connector\.4\.bias\)",
    ),
    "a tensor twice": (
        lambda f: weights(f, lambda t: t.update({"vision_tower._vision_tower.post_layernorm.bias": torch.ones(24)})),
        r"1 tensors are there twice",
    ),
    "another width": (
        lambda f: weights(f, lambda t: t.update({"connector._connector.0.bias": torch.ones(7)})),
        r"connector\._connector\.0\.bias is \[7\] in the weights and \[32\] in the config",
    ),
    "a tied head of its own": (
        lambda f: weights(f, lambda t: t.update({HEAD: torch.ones(ROWS, 32)})),
        r"the config ties language_model\.lm_head\.weight to language_model\.model\.embed_tokens\.weight, but their values differ",
    ),
    "no free row": (
        lambda f: edit(f, text_config={**json.loads((f / "config.json").read_text())["text_config"], "vocab_size": 317}),
        r"the tokenizer's 317 tokens fill all 317 rows",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_llava_is_refused_and_nothing_is_written(case, tmp_path):
    change, message = WRONG[case]
    source = Reference().write(tmp_path / "source")
    change(source)
    with pytest.raises(ValueError, match=message):
        convert(str(source), tmp_path / "llava")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_head_that_repeats_the_tied_embeddings_is_dropped(tmp_path):
    source = Reference().write(tmp_path / "source")
    weights(source, lambda tensors: tensors.update({HEAD: tensors["language_model.model.embed_tokens.weight"].clone()}))
    convert(str(source), tmp_path / "llava")
    assert not [name for name in whole_state(tmp_path / "llava") if "lm_head" in name]


class Payload:
    """A pickle that would make a file where it is opened carelessly."""

    def __reduce__(self):
        return (open, ("opened", "w"))


def test_a_pickle_with_code_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = Reference().write(tmp_path / "source", "folders")
    torch.save({"_connector.0.weight": Payload()}, source / "connector" / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"connector.pytorch_model.bin: not a pickle of plain tensors.*save it as safetensors"
    ):
        convert(str(source), tmp_path / "llava")
    torch.save([torch.ones(2)], source / "connector" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, found list"):
        convert(str(source), tmp_path / "llava")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_lost_shard_is_named(tmp_path):
    source = Reference().write(tmp_path / "source", "sharded")
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"names the shard model-00002-of-00002.safetensors, which is no file in its folder"
    ):
        convert(str(source), tmp_path / "llava")


def test_an_output_that_is_there_is_not_touched(tmp_path):
    source = Reference().write(tmp_path / "source")
    (tmp_path / "llava").mkdir()
    (tmp_path / "llava" / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"llava already exists"):
        convert(str(source), tmp_path / "llava")
    assert [path.name for path in (tmp_path / "llava").iterdir()] == ["mine.txt"]


def test_a_disk_that_fills_up_leaves_nothing_behind(tmp_path, monkeypatch):
    source = Reference().write(tmp_path / "source")

    def full(self, folder, **kwargs):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(LlavaForConditionalGeneration, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        convert(str(source), tmp_path / "llava")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
