from dataclasses import replace

import pytest
import torch
from switchkd.types import answer_targets
from tiny_families import BUILDS
from tiny_models import tiny_batch, tiny_llava

from switchkd.methods import KD, SFT, SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.recipe.schema import Data, LoRA, Recipe, Stage, Student, Teacher, Train
from switchkd.train.memory import Load, NoEstimateError, estimate, forecast

ALL = ("vision", "projector", "language")
SHAPES = {"width": 64, "vocabulary": 2000, "image_size": 48}


@pytest.fixture(scope="module")
def models():
    return tiny_llava(hidden=48, **SHAPES), tiny_llava(hidden=64, depth=3, **SHAPES)


def recipe(parts=ALL, method=None, student=None, teacher=None, **train):
    return Recipe(
        student=student or Student("student"),
        teacher=teacher or Teacher("teacher"),
        method=method or SwitchKD(),
        data=Data("rows.json"),
        train=Train("runs/x", per_device_train_batch_size=4, **train),
        stages=(Stage("train", train=parts),),
    )


def load(rows=4, length=120, answers=80, images=4):
    return Load(rows, length, answers, images)


def found(models, given, batch=None):
    student, teacher = (model.config for model in models)
    return estimate(given, given.resolved_stages()[0], student, teacher, batch or load())


def size(parameters):
    return sum(p.numel() * p.element_size() for p in parameters)


def test_weights_gradients_and_optimizer_are_those_of_the_models(models):
    student, teacher = map(Pathway, models)
    for parts in (ALL, ("projector",), ("vision", "language")):
        student.train_only(parts)
        given = recipe(parts, SwitchKD(switch=float("vision" in parts)))
        memory = found(models, given)
        buffers = size(student.buffers()) + size(teacher.buffers())
        assert memory.weights == size(student.parameters()) + size(teacher.parameters()) + buffers
        assert memory.gradients == size(p for p in student.parameters() if p.requires_grad)
        assert memory.optimizer == 2 * memory.gradients
    assert found(models, recipe(method=SFT())).weights == size(student.parameters()) + size(student.buffers())


def test_activations_are_what_autograd_keeps_in_a_real_step(models):
    # Counted another way: the storages that a real forward pass hands to the backward pass.
    student, teacher = map(Pathway, models)
    student.train_only(ALL)
    pair = Pair(student, teacher, needs=SwitchKD().needs, vocabulary=student.head.rows).train()
    batch = tiny_batch(images=(1, 1, 1, 1), image_size=48)
    own = {p.untyped_storage().data_ptr() for p in pair.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = pair(batch, SwitchKD().needs, lambda hidden: hidden)
    rows, length = batch["input_ids"].shape
    memory = found(models, recipe(), Load(rows, length, len(answer_targets(batch["labels"])), rows))
    ours = memory.student_vision + memory.student_language + memory.switch
    assert hidden.switch.requires_grad
    assert ours == pytest.approx(sum(kept.values()), rel=0.1)


def test_what_lowers_memory_lowers_the_estimate_where_it_belongs(models):
    plain = found(models, recipe())
    student_less = found(models, recipe(gradient_checkpointing=True))
    assert student_less.student_vision < plain.student_vision / 2
    assert student_less.student_language < plain.student_language / 2
    assert student_less.switch == plain.switch
    switch_less = found(models, recipe(switch_checkpointing=True))
    assert switch_less.switch < plain.switch / 2
    assert switch_less.student_language == plain.student_language
    assert max(student_less.peak, switch_less.peak) < plain.peak
    assert found(models, recipe(teacher=Teacher("teacher", dtype="bfloat16"))).switch < 0.7 * plain.switch
    assert found(models, recipe(bf16=True)).student_language < 0.8 * plain.student_language
    more = found(models, recipe(gradient_accumulation_steps=2))
    assert plain.peak + plain.gradients / 4 < more.peak <= plain.peak + plain.gradients
    frozen = found(models, recipe(("projector", "language"), SwitchKD(switch=0)))
    assert frozen.student_vision == 4 * 36 * 64 * 4  # V(x) itself: 36 visual tokens of 64 numbers for each image
    assert frozen.switch == 0
    lora = found(models, recipe(method=SFT(), student=Student("student", lora=LoRA(r=2))))
    assert 0 < lora.gradients < found(models, recipe(method=SFT())).gradients
    by_name = found(models, recipe(student=Student("student", freeze=("language",))))
    assert by_name.gradients < plain.gradients


def test_the_loss_holds_a_chunk_or_everything(models):
    answers = 400
    fused = found(models, recipe(), load(answers=answers))
    bare = (
        size(p for p in models[0].lm_head.parameters()) + answers * (48 + 64) * 4
    )  # gradients of head and hidden states
    assert fused.loss == bare + answers * 3 * 2000 * 4
    assert found(models, recipe(loss="plain"), load(answers=answers)).loss > 2 * fused.loss
    assert found(models, recipe(method=KD()), load(answers=answers)).loss > fused.loss


def test_a_quantized_teacher_holds_fewer_bytes(models):
    plain = found(models, recipe())
    linear = sum(m.weight.numel() for m in models[1].model.language_model.modules() if isinstance(m, torch.nn.Linear))
    for bits, per_weight in (("8bit", 1), ("4bit", 0.5625)):
        less = found(models, recipe(teacher=Teacher("teacher", quantization=bits)))
        assert plain.weights - less.weights == plain.peak - less.peak == linear * (4 - per_weight)


@pytest.mark.parametrize("name", BUILDS)
def test_every_family_is_estimated_or_refused_by_name(name):
    student, teacher = (BUILDS[name].config(hidden, 2) for hidden in (16, 24))
    given = recipe()
    if name in ("qwen2_5_vl", "idefics3", "smolvlm"):
        with pytest.raises(
            NoEstimateError, match=f"{student.model_type}: shapes in its vision encoder depend on the pict"
        ):
            estimate(given, given.resolved_stages()[0], student, teacher, load())
    else:
        memory = estimate(given, given.resolved_stages()[0], student, teacher, load())
        assert min(memory.student_vision, memory.student_language, memory.switch) > 0
        kept = memory.student_vision + memory.student_language + memory.switch
        assert 1 < memory.peak / (memory.weights + memory.optimizer + kept) < 1.5


def test_images_that_rows_cannot_hold_are_refused(models):
    with pytest.raises(
        ValueError, match=r"8 images are 288 visual tokens, but 4 rows of 60 tokens hold 240: raise data"
    ):
        found(models, recipe(), load(length=60, images=8))


def test_the_forecast_of_a_recipe(models, tmp_path):
    for name, model in zip(("student", "teacher"), models, strict=True):
        model.config.save_pretrained(tmp_path / name)
    given = recipe(student=Student(str(tmp_path / "student")), teacher=Teacher(str(tmp_path / "teacher")))
    given = replace(given, data=replace(given.data, max_length=100))
    line = forecast(given, given.resolved_stages()[0])
    assert line.startswith("about 0.")
    assert "switch 0." in line
    assert "for 4 rows of 100 tokens with an image each" in line
    (tmp_path / "teacher" / "config.json").unlink()
    cannot = forecast(given, given.resolved_stages()[0])
    assert cannot.startswith(f"cannot be estimated: {tmp_path}/teacher is no folder with the config.json of a model, ")


def test_the_forecast_finds_hub_names_in_the_cache(models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    given = recipe(student=Student("mine/student"), teacher=Teacher("mine/teacher"))
    given = replace(given, data=replace(given.data, max_length=100))
    for name, model in zip(("student", "teacher"), models, strict=True):
        assert f"cannot be estimated: mine/{name} is no folder" in forecast(given, given.resolved_stages()[0])
        cached = tmp_path / f"models--mine--{name}"
        model.config.save_pretrained(cached / "snapshots" / "0123")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0123")
    assert forecast(given, given.resolved_stages()[0]).startswith("about 0.")
