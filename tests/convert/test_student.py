"""Students before training: put together from public models, cut from a teacher, or both; always plain Hugging Face files."""

import json
import logging

import pytest
import torch
from PIL import Image
from run_files import write_model
from safetensors.torch import load_file, save_file
from student_files import write_language, write_vision
from tiny import tiny_processor
from tiny_models import tiny_llava
from tinyllava_files import Reference
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlavaConfig,
    SiglipVisionConfig,
)

from switchkd import cli
from switchkd.convert import Start, convert, init_student
from switchkd.convert.cut import cut, even
from switchkd.convert.processor import llava_processor
from switchkd.models import Pathway, load_pathway
from switchkd.pairing import Pair


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("vision", "language", "rows"), [("siglip", "qwen2", 328), ("clip", "llama", 317)])
def test_a_student_of_two_public_models_has_their_weights_and_sees(vision, language, rows, tmp_path):
    tower = write_vision(tmp_path / "vision", vision)
    text = write_language(tmp_path / "language", language, rows, torch.bfloat16, tied=language == "qwen2")
    parts = ["--vision", str(tmp_path / "vision"), "--language", str(tmp_path / "language")]
    assert cli.main(["init", str(tmp_path / "student"), *parts]) == 0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "student", dtype="auto")
    processor = AutoProcessor.from_pretrained(tmp_path / "student")

    state = model.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}  # bf16 fits into it without loss
    for name, tensor in tower.items():
        assert torch.equal(state[f"model.vision_tower.{name}"], tensor), name
    for name, tensor in text.items():
        found = state[name if name == "lm_head.weight" else name.replace("model.", "model.language_model.", 1)]
        assert torch.equal(found[: len(tensor)], tensor.float()), name
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert token == model.config.image_token_id == 317
    grown = state["lm_head.weight"][rows:]
    assert len(state["lm_head.weight"]) == (328 if rows == 328 else 320)
    torch.testing.assert_close(grown, text["lm_head.weight"].float().mean(0).expand_as(grown), rtol=0, atol=1e-3)

    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True)
    inputs = processor(images=Image.new("RGB", (40, 20), "red"), text=prompt, return_tensors="pt")
    assert (inputs["input_ids"] == token).sum() == 16
    blank = {**inputs, "pixel_values": torch.zeros_like(inputs["pixel_values"])}
    assert not torch.allclose(model(**inputs).logits, model(**blank).logits)
    assert model.generation_config.eos_token_id == 316


def test_a_new_projector_is_drawn_by_the_seed_alone(tmp_path):
    write_vision(tmp_path / "vision")
    write_language(tmp_path / "language")
    start = Start(vision=str(tmp_path / "vision"), language=str(tmp_path / "language"))
    for index, (name, seed) in enumerate({"a": 0, "b": 0, "c": 1}.items()):
        torch.manual_seed(index)  # of no matter
        before = torch.get_rng_state()
        init_student(start, tmp_path / name, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {name.split(".")[0] for name in a if not torch.equal(a[name], c[name])} == {"multi_modal_projector"}
    assert (
        0.05 < a["multi_modal_projector.linear_1.weight"].std() < 0.2
    )  # uniform to 1/sqrt(24), not the 0.02 of wide models


def test_a_student_for_a_tinyllava_teacher_fits_it(tmp_path):
    convert(str(Reference(hidden=48).write(tmp_path / "tinyllava")), tmp_path / "teacher")
    write_language(tmp_path / "language")
    flags = ["--from-teacher", str(tmp_path / "teacher"), "--language", str(tmp_path / "language")]
    assert cli.main(["init", str(tmp_path / "student"), *flags]) == 0
    student, teacher = load_pathway(tmp_path / "student"), load_pathway(tmp_path / "teacher")
    Pair(student, teacher, needs=frozenset({"student", "teacher", "switch"}), vocabulary=318)
    student_processor, teacher_processor = (
        AutoProcessor.from_pretrained(tmp_path / name) for name in ("student", "teacher")
    )
    assert student_processor.chat_template == teacher_processor.chat_template
    assert student_processor.tokenizer.get_vocab() == teacher_processor.tokenizer.get_vocab()
    assert student_processor.image_processor.to_dict() == teacher_processor.image_processor.to_dict()
    for name, tensor in teacher.model.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, student.model.model.vision_tower.state_dict()[name])
    assert student.model.model.multi_modal_projector.linear_2.weight.shape == (24, 24)


def test_a_vision_encoder_of_another_size_brings_its_own_image_processor(tmp_path):
    write_model(tmp_path / "teacher", seed=1)
    write_vision(tmp_path / "vision", image_size=24)
    init_student(Start(teacher=str(tmp_path / "teacher"), vision=str(tmp_path / "vision")), tmp_path / "student")
    processor = AutoProcessor.from_pretrained(tmp_path / "student")
    pixels = processor.image_processor(Image.new("RGB", (50, 50)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (24, 24)
    assert load_pathway(tmp_path / "student").model.config.vision_config.image_size == 24


def test_siglip_so400m_of_tinyllava_makes_728_placeholders():
    vision = SiglipVisionConfig(image_size=384, patch_size=14)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(), vision_feature_select_strategy="default")
    processor = llava_processor(tiny_processor().tokenizer, config, None)
    ids = processor(images=Image.new("RGB", (10, 10)), text="<image>", return_tensors="pt")["input_ids"]
    assert ids.shape == (1, 728)


@pytest.mark.parametrize(
    ("layers", "kept", "chosen"),
    [(4, 2, [0, 3]), (4, 4, [0, 1, 2, 3]), (5, 3, [0, 2, 4]), (26, 6, [0, 5, 10, 15, 20, 25]), (36, 24, None)],
)
def test_layers_are_chosen_evenly_first_and_last_included(layers, kept, chosen):
    found = even(layers, kept)
    assert chosen is None or found == chosen
    assert len(found) == kept
    assert (found[0], found[-1]) == (0, layers - 1)
    gaps = {after - before for before, after in zip(found, found[1:], strict=False)}  # noqa: RUF007
    assert max(gaps) - min(gaps) <= 1


def test_a_student_cut_from_the_teacher_keeps_the_chosen_layers_and_everything_else(tmp_path):
    write_model(tmp_path / "teacher", seed=1, depth=5, hidden=40)
    teacher = AutoModelForImageTextToText.from_pretrained(tmp_path / "teacher")
    flags = ["--from-teacher", str(tmp_path / "teacher"), "--language-layers", "3"]
    assert cli.main(["init", str(tmp_path / "student"), *flags]) == 0
    student = AutoModelForImageTextToText.from_pretrained(tmp_path / "student")
    student_state, teacher_state = student.state_dict(), teacher.state_dict()
    layer = "model.language_model.layers."
    for name, tensor in student_state.items():
        if name.startswith(layer):
            index, _, rest = name.removeprefix(layer).partition(".")
            name = f"{layer}{[0, 2, 4][int(index)]}.{rest}"
        assert torch.equal(tensor, teacher_state[name]), name
    assert student.config.text_config.num_hidden_layers == len(student.config.text_config.layer_types) == 3
    assert student.config.image_token_id == teacher.config.image_token_id
    # computing with these layers of the teacher gives the student's logits
    teacher.model.language_model.layers = teacher.model.language_model.layers[::2]
    teacher.config.text_config.num_hidden_layers = 3
    for index, kept in enumerate(teacher.model.language_model.layers):
        kept.self_attn.layer_idx = index
    ids = torch.randint(10, 300, (1, 7))
    assert torch.equal(student(input_ids=ids).logits, teacher(input_ids=ids, use_cache=False).logits)
    saved, original = (AutoProcessor.from_pretrained(tmp_path / name) for name in ("student", "teacher"))
    assert saved.chat_template == original.chat_template


def test_vision_layers_are_counted_below_the_features(tmp_path):
    model = tiny_llava(seed=1)
    config = LlavaConfig(**{**model.config.to_dict(), "vision_feature_layer": -2})
    config.vision_config.num_hidden_layers = 6
    torch.manual_seed(0)
    teacher = Pathway(type(model)(config).eval())
    new, tensors = cut(teacher, {"vision": 4})
    # features come from below the last of 6 layers: 5 feed them, of which 3 remain, and the last stays the last
    for index, old in enumerate([0, 2, 4, 5]):
        name = "model.vision_tower.encoder.layers.{}.mlp.fc1.weight"
        assert torch.equal(tensors[name.format(index)], teacher.model.state_dict()[name.format(old)])
    with pytest.raises(ValueError, match=r"2 of the 6 vision layers: choose 3 to 6.*, and 1 above the features"):
        cut(teacher, {"vision": 2})
    assert new.vision_config.num_hidden_layers == 4
    assert "model.vision_tower.encoder.layers.4.mlp.fc1.weight" not in tensors


def test_a_cut_encoder_and_another_language_model_make_a_student(tmp_path):
    write_model(tmp_path / "teacher", seed=1)
    small = AutoModelForImageTextToText.from_pretrained(tmp_path / "teacher")
    small.config.vision_config.num_hidden_layers = 6
    teacher = type(small)(small.config)
    teacher.save_pretrained(tmp_path / "teacher")
    write_language(tmp_path / "language", rows=320)
    start = Start(teacher=str(tmp_path / "teacher"), vision_layers=4, language=str(tmp_path / "language"))
    init_student(start, tmp_path / "student")
    state = load_pathway(tmp_path / "student").model.state_dict()
    name = "model.vision_tower.encoder.layers.{}.mlp.fc1.weight"
    for index, old in enumerate([0, 2, 4, 5]):
        assert torch.equal(state[name.format(index)], teacher.state_dict()[name.format(old)])
    assert name.format(4) not in state
    assert state["model.multi_modal_projector.linear_2.weight"].shape == (24, 24)
    assert torch.equal(
        state["lm_head.weight"], load_file(tmp_path / "language" / "model.safetensors")["model.embed_tokens.weight"]
    )


def test_features_that_are_counted_from_below_are_not_cut_wrongly(tmp_path):
    write_model(tmp_path / "teacher", seed=1)
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({**config, "vision_feature_layer": 3}))
    with pytest.raises(
        ValueError, match=r"leave the vision encoder 0 layers before its end, and nowhere after the cut"
    ):
        init_student(Start(teacher=str(tmp_path / "teacher"), vision_layers=2), tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_cutting_is_deterministic_and_keeps_the_precision(tmp_path):
    write_model(tmp_path / "teacher", seed=1, depth=4)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "teacher", dtype=torch.bfloat16).save_pretrained(
        tmp_path / "teacher"
    )
    for name in ("a", "b"):
        init_student(Start(teacher=str(tmp_path / "teacher"), language_layers=2), tmp_path / name)
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert {tensor.dtype for tensor in a.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"


REFUSED = {
    "nothing": ({}, r"where should the vision part come from\? Give --vision MODEL, or --from-teacher"),
    "half": ({"vision": "v"}, r"where should the language part come from"),
    "the teacher itself": ({"teacher": "t"}, r"the student would be the teacher"),
    "both": ({"teacher": "t", "vision": "v", "vision_layers": 3}, r"--vision-layers cuts the teacher's vision part"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_makes_no_sense_is_refused(case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Start(**arguments)


def test_a_cut_that_cannot_be_made_is_refused_and_nothing_is_written(tmp_path, caplog):
    write_model(tmp_path / "teacher", seed=1, depth=3)
    for wrong in (1, 4):
        with pytest.raises(ValueError, match=rf"{wrong} of the 3 language layers: choose 2 to 3\. The first"):
            init_student(Start(teacher=str(tmp_path / "teacher"), language_layers=wrong), tmp_path / "student")
    write_language(tmp_path / "language")
    with pytest.raises(
        ValueError, match=r"language is a qwen2; a LLaVA's vision encoder can be a clip, a clip_vision_model, a siglip"
    ):
        init_student(
            Start(vision=str(tmp_path / "language"), language=str(tmp_path / "language")), tmp_path / "student"
        )
    tensors = weights(tmp_path / "language")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "language" / "model.safetensors", metadata={"format": "pt"})
    caplog.set_level(logging.ERROR)
    with pytest.raises(ValueError, match=r"language lacks 1 tensors of a qwen2, model.norm.weight first"):
        init_student(
            Start(teacher=str(tmp_path / "teacher"), language=str(tmp_path / "language")), tmp_path / "student"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language", "teacher"]


def test_layers_with_roles_of_their_own_are_not_cut():
    pathway = Pathway(tiny_llava())
    pathway.model.config.vision_config.fullatt_block_indexes = [1]
    with pytest.raises(
        ValueError,
        match=r"vision part of a llava cannot be cut: it has layers with roles of their own \(fullatt_block_indexes\)",
    ):
        cut(pathway, {"vision": 2})
    pathway.model.model.language_model.more_layers = torch.nn.ModuleList([torch.nn.Linear(1, 1)])
    with pytest.raises(
        ValueError,
        match=r"language part of a llava cannot be cut: it is not one stack of layers \(.*layers, .*more_layers\)",
    ):
        cut(pathway, {"language": 2})
