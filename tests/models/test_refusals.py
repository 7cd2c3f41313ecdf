"""Checkpoints that cannot be used are refused before anything is loaded, with the cause and what to do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from student_files import write_language
from tiny_families import BUILDS
from transformers import AutoModelForImageTextToText

from switchkd.convert import Start, init_student
from switchkd.doctor import examine, examine_pair
from switchkd.evaluate.generate import load
from switchkd.methods import SwitchKD
from switchkd.models import load_pathway
from switchkd.models.opening import load_processor
from switchkd.models.refusals import refuse_unusable
from switchkd.recipe.schema import Data, Recipe, Student, Teacher, Train
from switchkd.world.assets import student_path

WEIGHTS = "model.safetensors"


def config(**entries):
    """Change entries of config.json; None takes one away."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        written = {**json.loads(file.read_text()), **entries}
        file.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))

    return change


def only(**files):
    """Nothing but files of this content; `__` in a name is a dot."""

    def change(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)

    return change


def without(*names, **files):
    """Without some files, with others in their place."""

    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(content)

    return change


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def as_run(folder: Path) -> None:
    inside = folder / "student"
    inside.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inside / file.name)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14483464192\n"
ORIGINAL = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_projector_type": "mlp2x_gelu"}
ADAPTER = json.dumps({"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf", "peft_type": "LORA"})
#: What a checkpoint is → what was done to a good one, and what is said. `{}` is the checkpoint's name.
KINDS = {
    "original LLaVA": (
        config(vision_config=None, text_config=None, **ORIGINAL),
        r"original code \(mm_vision_tower.*llava-hf/llava-1.5-7b-hf",
    ),
    "original LLaVA on Qwen": (
        config(model_type="llava_qwen", architectures=["LlavaQwenForCausalLM"], vision_config=None, **ORIGINAL),
        r"original code .*LlavaQwenForCausalLM.*convert_llava_weights_to_hf.py",
    ),
    "TinyLLaVA": (
        config(model_type="tinyllava", architectures=["TinyLlavaForConditionalGeneration"]),
        r"TinyLLaVA checkpoint: `switchkd convert {} OUTPUT`",
    ),
    "code in its folder": (
        config(
            model_type="internvl_chat",
            architectures=["InternVLChatModel"],
            auto_map={"AutoConfig": "configuration_internvl_chat.C"},
        ),
        r"no class for InternVLChatModel, model_type 'internvl_chat': its code lies in its own folder "
        r"\(configuration_internvl_chat.C\), and switchkd runs no code of checkpoints.*-hf",
    ),
    "a type of nobody": (
        config(model_type="tomorrow"),
        r"no class for LlavaForConditionalGeneration, model_type 'tomorrow'\. Take",
    ),
    "no type": (config(model_type=None), r"no model_type"),
    "a language model": (
        config(model_type="qwen2"),
        r"a qwen2, a language model that sees no images: `switchkd init .*--language {}`",
    ),
    "a family without a file": (config(model_type="blip-2"), r"'blip-2' is not supported yet \(supported: gemma3"),
    "GGUF": (only(model__gguf="GGUF"), r"GGUF weights, llama.cpp's form, which cannot be trained"),
    "GGUF beside a config": (without(WEIGHTS, model__gguf="GGUF"), r"GGUF weights, llama.cpp's form"),
    "authors' own form": (only(params__json="{}"), r"authors' own form \(params.json\)"),
    "a LoRA adapter": (
        only(adapter_config__json=ADAPTER, adapter_model__safetensors=""),
        r"(?s)LoRA adapter for llava-hf/llava-1.5-7b-hf, not a model. Merge it.*merge_and_unload\(\)",
    ),
    "a LoRA adapter without settings": (only(adapter_model__safetensors=""), r"LoRA adapter for another model"),
    "a LoRA adapter beside weights": (
        without(adapter_config__json=ADAPTER),
        r"(?s)LoRA adapter.*remove adapter_config.json",
    ),
    "pickles": (as_bin, r"(?s)pickles alone \(pytorch_model.bin\).*use_safetensors=False\)\.save_pretrained"),
    "shards of pickles": (
        without(WEIGHTS, **{"pytorch_model-00001-of-00002__bin": "", "pytorch_model__bin__index__json": "{}"}),
        r"pickles alone",
    ),
    "a pipeline": (only(model_index__json="{}"), r"a pipeline of diffusers"),
    "a run": (as_run, r"no config.json: did you mean {}/student\?"),
    "an empty folder": (only(), r"no config.json: it is no checkpoint of transformers"),
    "a pointer": (without(WEIGHTS, model__safetensors=LFS), r"model.safetensors is a pointer of Git LFS.*git lfs pull"),
    "a broken config": (without("config.json", config__json="{"), r"config.json is not JSON"),
    "a list for a config": (without("config.json", config__json="[]"), r"config.json holds a list where a mapping"),
}
#: The same for what a processor lacks.
PROCESSORS = {
    "no vocabulary": (
        without("tokenizer.json"),
        r"no vocabulary \(tokenizer.json, or vocab.json and merges.txt, or vocab.txt\)",
    ),
    "half a vocabulary": (without("tokenizer.json", vocab__json="{}"), r"no vocabulary"),
    "SentencePiece alone": (
        without("tokenizer.json", tokenizer__model=""),
        r"(?s)tokenizer.model alone, which sentencepiece reads: write tokenizer.json from it once.*save_pretrained",
    ),
    "tekken alone": (without("tokenizer.json", tekken__json="{}"), r"tekken.json alone, which mistral-common reads"),
    "no image processor": (without("processor_config.json"), r"no image processor \(preprocessor_config.json"),
    "a processor without its images": (
        without("processor_config.json", processor_config__json='{"processor_class": "LlavaProcessor"}'),
        r"no image processor",
    ),
}


def broken(folder: Path, change) -> Path:
    shutil.copytree(student_path(), folder, ignore=shutil.ignore_patterns("README.md"))
    change(folder)
    return folder


def said(pattern: str, name: Path) -> str:
    return pattern.replace("{}", str(name))


@pytest.fixture
def nothing_loads(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights are being loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)


@pytest.mark.parametrize("kind", [*KINDS, *PROCESSORS])
def test_what_cannot_be_used_is_refused_everywhere_before_anything_is_loaded(kind, tmp_path, nothing_loads):
    change, pattern = (KINDS | PROCESSORS)[kind]
    checkpoint = broken(tmp_path / "checkpoint", change)
    pattern = said(pattern, checkpoint)
    sound = str(student_path())
    for pair in ((str(checkpoint), sound), (sound, str(checkpoint))):
        with pytest.raises(ValueError, match=pattern):
            examine_pair(*pair)
    recipe = Recipe(Student(sound), SwitchKD(), Data("none.json"), Train(str(tmp_path)), Teacher(str(checkpoint)))
    (finding,) = examine(recipe).lines
    assert finding.level == "failed"
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(finding.detail)
    with pytest.raises(ValueError, match=pattern):
        init_student(Start(teacher=str(checkpoint), language_layers=1), tmp_path / "student")
    if kind in KINDS:
        with pytest.raises(ValueError, match=pattern):
            load(checkpoint)


def head_gone(tensors):
    return {name: tensor for name, tensor in tensors.items() if "lm_head" not in name}


def row_gone(tensors):
    name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight") and "language" in name)
    return tensors | {name: tensors[name][1:].contiguous()}


def layer_gone(tensors):
    return {name: tensor for name, tensor in tensors.items() if "layers.0." not in name or "language" not in name}


def more(tensors):
    return tensors | {"another.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (head_gone, r"hold no lm_head.weight, and config.json does not tie .*set tie_word_embeddings to true"),
        (
            row_gone,
            r"1 tensors have another shape .*layers.0.self_attn.q_proj.weight first: \[63, 64\] in the weights, \[64, 64\] by",
        ),
        (layer_gone, r"\d+ missing keys .*layers.0.* first"),
        (more, r"1 unexpected keys .*another.weight first"),
    ],
)
def test_tensors_that_are_not_the_configs_are_named_from_their_headers(change, pattern, tmp_path, monkeypatch):
    checkpoint = broken(tmp_path / "checkpoint", lambda folder: None)
    save_file(change(load_file(checkpoint / WEIGHTS)), checkpoint / WEIGHTS, metadata={"format": "pt"})
    reading, places = AutoModelForImageTextToText.from_pretrained, []

    def keep(*args, **kwargs):
        places.append(kwargs.get("device_map"))
        return reading(*args, **kwargs)

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", keep)
    with pytest.raises(ValueError, match=pattern):
        load_pathway(checkpoint)
    assert places == ["meta"]


def test_a_missing_shard_is_named(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    entry = {"model__safetensors__index__json": json.dumps(index), "model-00001-of-00002__safetensors": ""}
    checkpoint = broken(tmp_path / "checkpoint", without(WEIGHTS, **entry))
    with pytest.raises(ValueError, match=r"names 2 files of weights, and 1 are not there, model-00002-of-00002"):
        load_pathway(checkpoint)


def test_a_checkpoint_without_weights_is_examined_and_not_opened(tmp_path):
    checkpoint = broken(tmp_path / "checkpoint", without(WEIGHTS))
    assert examine_pair(str(checkpoint), str(student_path()))[0].ok
    with pytest.raises(ValueError, match=r"holds no weights"):
        load_pathway(checkpoint)


@pytest.mark.parametrize(("name", "said"), [("model.gguf", "a GGUF file"), (WEIGHTS, "a file of weights")])
def test_a_file_is_no_checkpoint(tmp_path, name, said):
    (tmp_path / name).write_text("")
    for refuse in (load_pathway, load_processor):
        with pytest.raises(ValueError, match=f"{name} is {said}.*give the directory"):
            refuse(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "pattern"),
    [(without("vocab.json"), "no vocabulary"), (without(WEIGHTS, model__gguf="GGUF"), "GGUF weights")],
)
def test_the_language_half_of_a_new_student_is_looked_at_too(change, pattern, tmp_path):
    write_language(tmp_path / "language")
    change(tmp_path / "language")
    with pytest.raises(ValueError, match=pattern):
        init_student(Start(teacher=str(student_path()), language=str(tmp_path / "language")), tmp_path / "student")


@pytest.mark.parametrize("name", sorted(BUILDS))
def test_every_family_is_accepted(name, tmp_path):
    BUILDS[name].config(16, 2).save_pretrained(tmp_path)
    refuse_unusable(tmp_path)


def test_leftovers_of_the_original_code_in_a_converted_config_do_no_harm(tmp_path):
    checkpoint = broken(tmp_path / "checkpoint", config(**ORIGINAL))
    assert examine_pair(str(checkpoint), str(student_path()))[0].ok
