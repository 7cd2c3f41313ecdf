"""The memory of a step, from configs alone, held against what real steps keep and hold."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from tiny_families import BUILDS, batch_for, tiny
from tiny_models import IMAGE_TOKEN, make_inputs, read_alike, tiny_batch, tiny_llava
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from switchkd.methods import KD, SFT, AlignKD, FeatureKD, SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.recipe.schema import Data, LoRA, Pairing, Recipe, Stage, Student, Teacher, Train
from switchkd.train.live import Live
from switchkd.train.memory import estimate, forecast, left_out
from switchkd.train.step import DistillationStep

ALL = ("vision", "projector", "language")
SHAPES = {"width": 64, "vocabulary": 2000, "image_size": 48}


@pytest.fixture(scope="module")
def models():
    return tiny_llava(hidden=48, **SHAPES), tiny_llava(hidden=64, depth=3, **SHAPES)


#: Two in the normal suite: an estimate takes seconds.
SHORT = {"qwen2_5_vl", "gemma3"}
FAMILIES = [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in BUILDS]


def recipe(parts=ALL, method=None, student=None, teacher=None, bridge="auto", **train):
    return Recipe(
        student=student or Student("student"),
        teacher=teacher or Teacher("teacher"),
        method=method or SwitchKD(),
        data=Data("rows.json", max_length=120),
        train=Train("runs/x", per_device_train_batch_size=4, **train),
        stages=(Stage("train", train=parts),),
        pair=Pairing(bridge=bridge),
    )


def stage_with(method):
    return recipe(method=method).resolved_stages()[0]


def load(answers=80, length=120):
    """Four rows with an image each, which end with their answers."""
    of_row = answers // 4
    ids = [IMAGE_TOKEN] * 36 + [7] * (length - 36)
    images = {"pixel_values": torch.zeros(4, 3, 48, 48)}
    return read_alike(make_inputs([(ids, list(range(length - of_row, length)))] * 4, images))


def found(models, given, batch=None):
    student, teacher = (model.config for model in models)
    return estimate(given, given.resolved_stages()[0], student, teacher, batch or load())


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.long
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


def kept_by_a_real_step(student, teacher, batch):
    """The bytes of the storages that a real forward pass hands to the backward pass."""
    student, teacher = Pathway(student), Pathway(teacher)
    student.train_only(ALL)
    pair = Pair(student, teacher, needs=SwitchKD().needs, vocabulary=student.head.rows).train()
    given = [*pair.parameters(), *pair.buffers(), *(t for m in batch.student.media.values() for t in m.values())]
    known = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        signals = pair(batch)
    assert signals.compared["teacher"].switch.hidden.requires_grad
    return sum(kept.values())


def kept_of(memory):
    return memory.student_vision + memory.student_language + memory.switch


def test_activations_are_what_autograd_keeps_in_a_real_step(models):
    batch = tiny_batch(images=(1, 1, 1, 1), image_size=48)
    assert kept_of(found(models, recipe(), batch)) == pytest.approx(kept_by_a_real_step(*models, batch), rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_activations_of_every_family_are_what_autograd_keeps(name):
    models, batch = [tiny(name, hidden=hidden, depth=2) for hidden in (16, 24)], batch_for(name)
    memory = found(models, recipe(), batch)
    assert kept_of(memory) == pytest.approx(kept_by_a_real_step(*models, batch), rel=0.1)
    assert memory.weights == sum(size(model.parameters()) + size(model.buffers()) for model in models)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_the_largest_batch_of_every_family_is_estimated(name):
    student, teacher = (BUILDS[name].config(hidden, 2) for hidden in (16, 24))
    given = recipe()
    memory = estimate(given, given.resolved_stages()[0], student, teacher)
    assert min(memory.student_vision, memory.student_language, memory.switch) > 0
    assert 1 < memory.peak / (memory.weights + memory.optimizer + kept_of(memory) + memory.loss) < 1.2


def test_operations_are_those_that_torch_counts_in_a_real_step(models):
    """With attention written out as products: of the fused one on a CPU torch counts nothing."""
    student = copy.deepcopy(models[0])
    student.set_attn_implementation("eager")
    batch, given = load(), recipe(method=SFT(), student=Student("student", attn_implementation="eager"))
    pathway = Pathway(student)
    pathway.train_only(ALL)
    step = DistillationStep(Pair(pathway, None, needs=SFT().needs, vocabulary=pathway.head.rows), SFT())
    with FlopCounterMode(display=False) as counter:
        step(batch._replace(readers={}, shared={})).loss.backward()
    assert found(models, given, batch).flops == counter.get_total_flops() > 0


@pytest.mark.skipif("dtype_out" not in torch.ops.aten.mm.overloads(), reason="torch 2.8 brought these products")
def test_products_of_bf16_that_add_in_float32_have_their_sizes():
    """As the loss multiplies on a GPU; torch alone has no shapes for the last one."""
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        total, left, right = torch.empty(4, 3), torch.empty(4, 5).bfloat16(), torch.empty(5, 3).bfloat16()
        before = live.bytes
        assert torch.mm(left, right, out_dtype=torch.float32).dtype == torch.float32
        torch.addmm(total, left, right, beta=1, out_dtype=torch.float32, out=total)
        assert live.bytes == before


@pytest.mark.slow
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


@pytest.mark.long
def test_the_loss_holds_a_chunk_or_everything(models):
    answers = 320
    fused = found(models, recipe(), load(answers))
    # gradients of head and hidden states, and three logits of each token
    least = size(p for p in models[0].lm_head.parameters()) + answers * (48 + 64) * 4 + answers * 3 * 2000 * 4
    assert least <= fused.loss < 1.2 * least
    assert found(models, recipe(loss="plain"), load(answers)).loss > 2 * fused.loss
    assert found(models, recipe(method=KD()), load(answers)).loss > fused.loss


@pytest.mark.long
def test_what_is_captured_inside_the_models_counts_and_terms_are_left_out_by_name(models):
    """Attention weights of the first layer are kept, for the backward pass too; terms on them are not in the estimate."""
    soft_targets_alone = AlignKD(attention=0, projected=0, focus=0)
    without, with_attention = (found(models, recipe(method=method)) for method in (soft_targets_alone, AlignKD()))
    weights = 4 * 2 * 120 * 120 * 4  # rows, heads, queries, keys, float32
    assert with_attention.student_language >= without.student_language + 2 * weights
    assert with_attention.weights > without.weights  # the maps that are learned
    assert left_out(stage_with(AlignKD())).startswith("; without the terms of method align_kd at Attention(layer=0")
    assert left_out(stage_with(FeatureKD())).startswith("; without the terms of method feature_kd at Vision()")
    assert left_out(stage_with(SwitchKD())) == ""


def test_a_second_reading_of_the_teacher_costs_operations_and_nothing_that_stays(models):
    plain, weighed = (found(models, recipe(method=method)) for method in (KD(), KD().weighted()))
    assert weighed.flops > plain.flops
    assert weighed.weights == plain.weights
    assert kept_of(weighed) == kept_of(plain)


@pytest.mark.long
def test_a_bridge_is_counted(models):
    plain, bridged = found(models, recipe()), found(models, recipe(bridge="always"))
    assert bridged.weights == plain.weights + (64 * 64 + 64) * 4
    assert bridged.gradients == plain.gradients + (64 * 64 + 64) * 4
    assert bridged.peak > plain.peak
    student = tiny_llava(hidden=48, **(SHAPES | {"width": 32}))
    assert found((student, models[1]), recipe()).switch > 0


@pytest.mark.long
def test_a_quantized_teacher_holds_fewer_bytes(models):
    plain = found(models, recipe())
    linear = sum(m.weight.numel() for m in models[1].model.language_model.modules() if isinstance(m, torch.nn.Linear))
    for bits, per_weight in (("8bit", 1), ("4bit", 0.5625)):
        less = found(models, recipe(teacher=Teacher("teacher", quantization=bits)))
        assert plain.weights - less.weights == plain.peak - less.peak == linear * (4 - per_weight)


def test_images_that_rows_cannot_hold_are_refused(models):
    given = recipe()
    given = replace(given, data=replace(given.data, max_length=30))
    message = r"4 images are 144 visual tokens, but 4 rows of 30 tokens hold 120: raise data"
    with pytest.raises(ValueError, match=message):
        estimate(given, given.resolved_stages()[0], *(model.config for model in models))


def test_the_forecast_of_a_recipe(models, tmp_path):
    for name, model in zip(("student", "teacher"), models, strict=True):
        model.config.save_pretrained(tmp_path / name)
    given = recipe(student=Student(str(tmp_path / "student")), teacher=Teacher(str(tmp_path / "teacher")))
    line = forecast(given, given.resolved_stages()[0])
    assert line.startswith("about 0.")
    assert "switch 0." in line
    assert re.search(r"; 0\.\d\d TFLOP, for 4 rows", line)
    assert "for 4 rows of 120 tokens with an image each" in line
    (tmp_path / "teacher" / "config.json").unlink()
    cannot = forecast(given, given.resolved_stages()[0])
    assert cannot.startswith(f"cannot be estimated: {tmp_path}/teacher is no folder with the config.json of a model, ")


def test_the_forecast_finds_hub_names_in_the_cache(models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    given = recipe(student=Student("mine/student"), teacher=Teacher("mine/teacher"))
    for name, model in zip(("student", "teacher"), models, strict=True):
        assert f"cannot be estimated: mine/{name} is no folder" in forecast(given, given.resolved_stages()[0])
        cached = tmp_path / f"models--mine--{name}"
        model.config.save_pretrained(cached / "snapshots" / "0123")
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text("0123")
    assert forecast(given, given.resolved_stages()[0]).startswith("about 0.")
