"""Every fault that the doctor knows, planted in a stage that is sound without it."""

import json
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from cases import SIZES, collated_by, failed, found, open_tiny, with_inputs
from run_files import write_model, write_run
from safetensors.torch import load_file, save_file
from tiny import tiny_tokenizer
from tiny_tokenizers import other_processor, sentencepiece_tokenizer

from switchkd import world
from switchkd.batch import TEACHER
from switchkd.data.collate import Collator
from switchkd.demonstration import demo_recipe
from switchkd.doctor import RUNNING, Examined, examine, samples
from switchkd.doctor import check_answers as data
from switchkd.doctor import check_directions as method
from switchkd.doctor import check_loader as loader
from switchkd.doctor import check_memory as memory
from switchkd.doctor import check_stage as stage
from switchkd.doctor import check_switch as switch
from switchkd.doctor.check_images import NORMALISATIONS
from switchkd.losses import cross_entropy, forward_kl
from switchkd.methods import KD, BiLD, FeatureKD, Method, SwitchKD
from switchkd.models import Pathway
from switchkd.pairing.reading import OwnInputs
from switchkd.recipe.schema import load_recipe
from switchkd.signals import TokenTerm
from switchkd.train.stage import open_run, open_stage
from switchkd.train.step import DistillationStep

#: Images of one size, several tiles, and patches in one long row.
some_families = pytest.mark.parametrize("name", ["llava-siglip-qwen2", "idefics3", "qwen2_5_vl"])


def test_ids_beyond_the_compared_ones_are_named(tmp_path):
    """A tokenizer whose ids have a gap."""
    opened = open_tiny(tmp_path)
    assert not [line for line in data.vocabulary(Examined(opened)) if line.check == "ids beyond"]
    tokenizer = opened.run.processor.tokenizer
    ids = tokenizer.get_vocab()
    tokenizer.get_vocab = lambda: ids | {"<far>": len(tokenizer) + 7}
    (finding,) = [line for line in data.vocabulary(Examined(opened)) if line.check == "ids beyond"]
    assert finding.level == "warning"
    assert f"1 of {len(ids) + 1:,} tokens have ids beyond the {len(tokenizer):,} that are compared" in finding.detail
    assert f"'<far>' ({len(tokenizer) + 7}) first" in finding.detail


# ---- answer masks and targets


def targets_changed(opened, change):
    """The stage with batches whose answers `change` moves: it gets the inputs, and gives (predicts, targets, sample)."""

    def spoil(batch):
        def spoilt(inputs):
            predicts, targets, sample = change(inputs)
            return inputs._replace(predicts=predicts, targets=targets, sample=sample)

        return with_inputs(batch, spoilt)

    return collated_by(opened, spoil)


def kept(inputs, chosen):
    return inputs.predicts[chosen], inputs.targets[chosen], inputs.sample[chosen]


def answers_at(inputs, places):
    """Answers at these places of a flat batch."""
    return places - 1, inputs.tokens.flatten()[places], places // inputs.tokens.shape[1]


def test_a_mask_that_is_all_zero(tmp_path):
    opened = targets_changed(open_tiny(tmp_path), lambda inputs: kept(inputs, inputs.sample < 0))
    level, detail = found(opened)["student's targets"]
    assert level == "failed"
    assert detail.startswith("3 of 3 rows have no answer token, ")


def test_a_mask_that_is_zero_in_one_row(tmp_path):
    opened = open_tiny(tmp_path)
    second = Examined(opened).rows[1]["id"]
    opened = targets_changed(opened, lambda inputs: kept(inputs, inputs.sample != 1))
    assert found(opened)["student's targets"][1].startswith(f"1 of 3 rows have no answer token, {second!a} first")


def test_targets_that_are_not_shifted(tmp_path):
    def unshifted(inputs):
        return inputs.predicts, inputs.tokens.flatten()[inputs.predicts], inputs.sample

    level, detail = found(targets_changed(open_tiny(tmp_path), unshifted))["teacher's targets"]
    assert level == "failed"
    assert "they are not shifted: each is the token that predicts it" in detail


def test_targets_of_another_place(tmp_path):
    def moved(inputs):
        return inputs.predicts, inputs.targets.roll(1), inputs.sample

    detail = found(targets_changed(open_tiny(tmp_path), moved))["student's targets"][1]
    assert "targets differ from the token that follows: they are other tokens" in detail


def test_targets_on_padding(tmp_path):
    def on_padding(inputs):
        padding = (~inputs.is_text()).flatten().nonzero().flatten()
        places = torch.cat([inputs.predicts + 1, padding]).sort().values
        return answers_at(inputs, places)

    detail = found(targets_changed(open_tiny(tmp_path), on_padding))["student's targets"][1]
    assert "targets are on padding" in detail


def test_answers_of_another_sample(tmp_path):
    def moved(inputs):
        return inputs.predicts, inputs.targets, (inputs.sample + 1) % 3

    detail = found(targets_changed(open_tiny(tmp_path), moved))["student's targets"][1]
    assert "an answer is predicted from another sample, or from behind the end of its own" in detail


class Rereading(Collator):
    """A collator whose samples have other answers: all tokens, or none."""

    def __init__(self, collator, answers):
        super().__init__(collator.student, collator.teachers)
        self.answers = answers

    def encode(self, row):
        sample = super().encode(row)
        student = replace(sample.student, answers=self.answers(sample.student))
        return replace(sample, student=student)


def test_questions_that_are_learned(tmp_path):
    opened = open_tiny(tmp_path)
    everything = Rereading(opened.collator, lambda student: list(range(1, len(student.tokens))))
    level, detail = found(replace(opened, collator=everything))["text of the answers"]
    assert level == "warning"
    assert "where the assistant says '…Acat." in detail


@pytest.mark.long
def test_rows_that_are_answers_only(tmp_path):
    opened = open_tiny(tmp_path)
    lengths = opened.rows["length"]
    rows = opened.rows.remove_columns("answers").add_column("answers", list(lengths))
    assert found(replace(opened, rows=rows))["answer mask"][0] == "warning"
    rows = opened.rows.remove_columns("answers").add_column("answers", [0 for _ in lengths])
    assert found(replace(opened, rows=rows))["answer mask"][0] == "failed"


def test_samples_show_what_is_learned(tmp_path):
    opened = open_tiny(tmp_path)
    shown = {sample.name: sample for sample in data.samples(Examined(opened))}
    first = shown["row-0"]
    assert [kind for kind, _ in first.pieces] == ["prompt", "image", "prompt", "answer", "prompt", "answer", "prompt"]
    assert [text for kind, text in first.pieces if kind != "prompt"] == [
        "<image ×4>",
        "A cat.<|im_end|>",
        "No.<|im_end|>",
    ]
    nothing = replace(opened, collator=Rereading(opened.collator, lambda student: []))
    blind = data.samples(Examined(nothing))[0]
    assert {kind for kind, _ in blind.pieces} == {"prompt", "image"}


# ---- the shift


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "paligemma", "gemma3"])
@pytest.mark.parametrize(("moved", "says"), [(1, "has read the token"), (-1, "has not read up to the token")])
def test_an_off_by_one_shift(tmp_path, monkeypatch, name, moved, says):
    """States of the place of the token that they score, as where logits and labels of one place are compared; or of one too early."""
    opened = open_tiny(tmp_path, name)
    say = Pathway.say

    def off_by_one(self, features, inputs):
        return say(self, features, inputs._replace(predicts=inputs.predicts + moved))

    monkeypatch.setattr(Pathway, "say", off_by_one)
    lines = found(opened)
    for who in ("student", "teacher"):
        assert lines[f"{who}'s shift"][0] == "failed"
        assert says in lines[f"{who}'s shift"][1]


# ---- images


@some_families
def test_an_image_span_that_is_truncated(tmp_path, name):
    """Cut off at the left, as tokenizers do with `truncation_side="left"`: the answers stay."""
    opened = open_tiny(tmp_path, name)
    image = opened.run.reader.format.image_token_id

    def cut(inputs):
        gone = int((inputs.tokens == image).int().argmax(dim=1).min()) + 1
        width = inputs.tokens.shape[1]
        return inputs._replace(
            tokens=inputs.tokens[:, gone:],
            lengths=inputs.lengths - gone,
            predicts=inputs.predicts - gone * (inputs.predicts // width + 1),
            types={name: types[:, gone:] for name, types in inputs.types.items()},
        )

    opened = collated_by(opened, lambda batch: with_inputs(batch, cut))
    level, detail = found(opened)["student's image tokens"]
    assert level == "failed"
    tokens, features = [int(word) for word in detail.split() if word.isdigit()][:2]
    assert tokens == features - 1
    assert "a truncated image" in detail


@some_families
def test_a_teacher_without_images(tmp_path, name):
    opened = open_tiny(tmp_path, name)
    opened.pair.teacher.see = lambda batch: None
    level, detail = found(opened)["teacher's image tokens"]
    assert level == "failed"
    assert "do not reach the vision encoder" in detail


@some_families
@pytest.mark.parametrize("part", ["vision", "projector"])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_blind_model(tmp_path, name, part, who):
    opened = open_tiny(tmp_path, name)
    pathway = getattr(opened.pair, who)
    with torch.no_grad():
        for parameter in pathway.part_parameters(part).values():
            parameter.zero_()
    level, detail = found(opened)[f"{who} sees images"]
    assert level == "failed"
    says = {"vision": "the same features for all images", "projector": "what comes after them ignores that"}
    assert says[part] in detail


@pytest.mark.parametrize(
    ("made", "level"),
    [
        (SwitchKD(), "failed"),
        (SwitchKD(switch_layers=1), "failed"),
        (FeatureKD(), "failed"),
        (KD(), "warning"),
        (KD().plus(features=1.0), "failed"),
    ],
)
def test_rows_without_images(tmp_path, made, level):
    lines = found(open_tiny(tmp_path, sizes=[[], []], method=made))
    assert lines["images"][0] == level
    assert lines.keys().isdisjoint({"switch", "features"})  # nothing of the encoder is compared


# ---- a wrong processor


@pytest.mark.parametrize("name", ["llava-siglip-qwen2", "qwen3_vl"])
@pytest.mark.parametrize(
    ("setting", "says"),
    [({"do_rescale": False}, "not scaled to 0 … 1"), ({"rescale_factor": 1 / 255**2}, "all images are nearly black")],
)
def test_pixels_that_are_scaled_wrongly(tmp_path, name, setting, says):
    opened = open_tiny(tmp_path, name)
    for key, value in setting.items():
        setattr(opened.run.processor.image_processor, key, value)
    level, detail = found(opened)["student's pixels"]
    assert level == "failed"
    assert says in detail


def test_an_image_processor_for_another_size(tmp_path):
    opened = open_tiny(tmp_path)
    opened.run.processor.image_processor.size = {"height": 32, "width": 32}
    level, detail = found(opened)["teacher's image tokens"]
    assert level == "failed"
    assert "images are 32 x 32 pixels and the model reads 16 x 16" in detail


def test_an_image_token_of_another_tokenizer(tmp_path):
    opened = open_tiny(tmp_path)
    geometry = opened.pair.student.family.geometry
    opened.pair.student.family.geometry = replace(geometry, image_token_id=geometry.image_token_id + 1)
    assert "student's image token" in failed(opened)


def test_a_tokenizer_that_cuts_answers_differently(tmp_path):
    """The same ids for the same tokens: vocabularies do not tell."""
    opened = open_tiny(tmp_path)
    file = tmp_path / "teacher" / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["model"]["merges"] = saved["model"]["merges"][:5]
    file.write_text(json.dumps(saved))
    level, detail = found(opened)["answer tokens"]
    assert level == "failed"
    assert "'A cat.' is" in detail


def test_a_tokenizer_with_other_ids(tmp_path):
    opened = open_tiny(tmp_path)
    other = tiny_tokenizer()
    shutil.rmtree(tmp_path / "teacher")
    other.save_pretrained(tmp_path / "teacher")
    assert found(opened)["answer tokens"][0] == "ok"
    file = tmp_path / "teacher" / "tokenizer.json"
    saved = json.loads(file.read_text())
    ids = saved["model"]["vocab"]
    ids["A"], ids["."] = ids["."], ids["A"]
    file.write_text(json.dumps(saved))
    assert found(opened)["answer tokens"][0] == "failed"


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A recipe whose student differs from its teacher in width, patches, resolution, template and tokenizer."""
    folder = tmp_path_factory.mktemp("apart")
    recipe = write_run(folder)
    shutil.rmtree(folder / "student")
    processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
    write_model(folder / "student", seed=2, processor=processor, width=48, vocabulary=448, image_size=48)
    return load_recipe(recipe)


@pytest.mark.long
def test_a_pair_that_reads_apart_is_sound(apart):
    lines = {line.check.removeprefix("train: "): line for line in examine(apart).lines}
    assert not [line for line in lines.values() if line.level == "failed"]
    assert "are compared with the same text of the teacher" in lines["answer tokens"].detail
    assert "id 3 ('<image>') for the model" in lines["teacher's image token"].detail


def test_answers_that_are_aligned_with_others(apart, tmp_path, monkeypatch):
    """Each answer compared with the one before: every index is valid."""
    read = OwnInputs.read

    def moved(self, row, student):
        reading = read(self, row, student)
        ours, theirs = zip(*reading.compared, strict=True)
        return replace(reading, compared=list(zip(ours, (theirs[-1], *theirs[:-1]), strict=True)))

    opened = open_stage(open_run(apart), apart.resolved_stages()[0], tmp_path / "stage")
    monkeypatch.setattr(OwnInputs, "read", moved)
    level, detail = found(opened)["answer tokens"]
    assert level == "failed"
    assert "of the student is compared with" in detail


def test_answers_whose_end_does_not_end_generation(tmp_path):
    opened = open_tiny(tmp_path)
    opened.pair.student.model.generation_config.eos_token_id = [0, 1]
    level, detail = found(opened)["end of answers"]
    assert level == "warning"
    assert "Set eos_token_id of its generation_config.json to 2" in detail


# ---- a teacher that has been trained: the world's


@pytest.fixture
def demo(tmp_path):
    world.write(tmp_path / "data", train=8, validation=0, test=0, seed=0)
    shutil.copytree(world.teacher_path(), tmp_path / "teacher")
    world.write_student(tmp_path / "student-init")
    return tmp_path


def examined(folder):
    return {
        line.check.removeprefix("train: "): (line.level, line.detail) for line in examine(demo_recipe(0, folder)).lines
    }


@pytest.mark.long
def test_the_demo_is_sound(demo):
    lines = examined(demo)
    del lines["data loader"]  # depends on what else the machine does
    assert not {check: line for check, line in lines.items() if line[0] != "ok"}
    assert "normalisation" in lines


@pytest.mark.long
@pytest.mark.parametrize("name", ["CLIP", "ImageNet"])
def test_pixels_that_are_normalised_as_for_another_encoder(demo, name):
    for who in ("teacher", "student-init"):
        file = demo / who / "processor_config.json"
        saved = json.loads(file.read_text())
        saved["image_processor"]["image_mean"], saved["image_processor"]["image_std"] = NORMALISATIONS[name]
        file.write_text(json.dumps(saved))
    level, detail = examined(demo)["normalisation"]
    assert level == "warning"
    assert "with SigLIP's" in detail


def edit_teacher(demo, edit):
    file = demo / "teacher" / "model.safetensors"
    weights = load_file(file)
    for name, tensor in weights.items():
        edit(name, tensor)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.long
def test_a_vision_encoder_whose_weights_were_never_loaded(demo):
    torch.manual_seed(0)

    def forget(name, tensor):
        if "vision_tower" in name and tensor.ndim > 1:
            tensor.normal_(std=0.02)

    edit_teacher(demo, forget)
    level, detail = examined(demo)["teacher sees images"]
    assert level == "warning"
    assert "Are the weights of its vision encoder trained" in detail


@pytest.mark.long
def test_a_teacher_that_knows_nothing(demo):
    """Its embeddings belong to other tokens: as after a change of tokenizers."""

    def permute(name, tensor):
        if "embed_tokens" in name:
            tensor.copy_(tensor.roll(50, dims=0))

    edit_teacher(demo, permute)
    lines = examined(demo)
    assert "warning" in {lines.get(name, ("ok",))[0] for name in ("teacher knows the answers", "teacher sees images")}


def test_what_cannot_be_opened_is_a_finding(demo):
    edit_teacher(demo, lambda name, tensor: None)
    (demo / "teacher" / "model.safetensors").unlink()
    (line,) = examine(demo_recipe(0, demo)).lines
    assert (line.level, line.check) == ("failed", "can be opened")


# ---- the switch


#: What trains the vision encoder alone, the check that speaks of it, and what it says is compared.
CROSSING = [
    (SwitchKD(), "switch", "z_SW"),
    (SwitchKD(switch_layers=0), "switch", "after P_T"),
    (SwitchKD(switch_layers=1), "switch", "after layer 1"),
    (FeatureKD(), "features", "V_T(x)"),
]
of_crossing = pytest.mark.parametrize(
    ("made", "check", "compared"), [pytest.param(*case, id=str(case[2])) for case in CROSSING]
)


@of_crossing
def test_a_frozen_vision_encoder(tmp_path, made, check, compared):
    opened = open_tiny(tmp_path, method=made)
    opened.pair.student.train_only(("projector", "language"))
    level, detail = found(opened)[check]
    assert level == "failed"
    assert "is frozen" in detail


@of_crossing
def test_an_encoder_that_can_learn(tmp_path, made, check, compared):
    (line,) = switch.alive(Examined(open_tiny(tmp_path, method=made)))
    assert (line.level, line.check) == ("ok", check)
    assert compared in line.detail


def test_both_of_two_terms_are_looked_at(tmp_path):
    examined = Examined(open_tiny(tmp_path, method=SwitchKD().plus(features=1.0)))
    lines = {line.check: line.level for line in switch.alive(examined)}
    assert lines == {"features": "ok", "switch": "ok"}


@of_crossing
def test_an_encoder_that_is_the_teachers(tmp_path, made, check, compared):
    opened = open_tiny(tmp_path, method=made)
    _copy_vision(opened)
    (line,) = switch.alive(Examined(opened))
    assert (line.level, line.check) == ("warning", check)
    assert "V_S is V_T" in line.detail


@pytest.mark.long
@some_families
def test_a_vision_encoder_that_is_the_teachers(tmp_path, name):
    opened = open_tiny(tmp_path, name)
    _copy_vision(opened)
    level, detail = found(opened)["switch"]
    assert level == "warning"
    assert "V_S is V_T" in detail


def _copy_vision(opened):
    ours, theirs = (pathway.part_parameters("vision") for pathway in (opened.pair.student, opened.pair.teacher))
    with torch.no_grad():
        for key, parameter in ours.items():
            parameter.copy_(theirs[key])


@pytest.mark.parametrize("made", [SwitchKD(), SwitchKD(switch_layers=0)], ids=["whole", "projector alone"])
def test_a_projector_that_passes_nothing_on(tmp_path, made):
    opened = open_tiny(tmp_path, "gemma3", method=made)
    with torch.no_grad():
        for parameter in opened.pair.teacher.part_parameters("projector").values():
            parameter.zero_()  # as Gemma 3's is made
    (line,) = switch.alive(Examined(opened))
    assert line.level == "failed"
    assert "norm 0" in line.detail


def test_an_encoder_that_passes_nothing_on(tmp_path):
    opened = open_tiny(tmp_path, method=FeatureKD())
    with torch.no_grad():
        for parameter in opened.pair.student.part_parameters("vision").values():
            parameter.zero_()
    (line,) = switch.alive(Examined(opened))
    assert (line.level, line.check) == ("failed", "features")
    assert "norm 0" in line.detail


# ---- the method


@dataclass(frozen=True)
class HomeMade(Method):
    """A forward KL, or what its author takes for one."""

    name: ClassVar[str] = "home_made"
    fault: str = "none"

    @property
    def needs(self):
        return frozenset({"student", "teacher"})

    @property
    def directions(self):
        return {"kl" if self.fault != "name" else "kd": "forward"}

    def token_terms(self, logits):
        compared = logits.compared[TEACHER]
        student, teacher = compared.student, compared.teacher
        values = forward_kl(teacher, student) if self.fault == "swapped" else forward_kl(student, teacher)
        sign = {"sign": -1, "nothing": 0}.get(self.fault, 1)
        return {"ce": TokenTerm(cross_entropy(logits.student, logits.targets)), "kl": compared.term(sign * values)}


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("swapped", "that is the reverse KL(p_S ‖ p_T), and the method declares the forward KL(p_T ‖ p_S)"),
        ("sign", "which is no divergence"),
        ("nothing", "it says the same of all models, so it teaches nothing"),
        ("name", "names 'kd', which is no term: ce, kl"),
    ],
)
def test_a_swapped_direction(tmp_path, fault, says):
    assert found(open_tiny(tmp_path, method=HomeMade()))["KL directions"][0] == "ok"
    level, detail = found(open_tiny(tmp_path, method=HomeMade(fault)))["KL directions"]
    assert level == "failed"
    assert says in detail


def test_directions_are_found_at_any_temperature_and_width(tmp_path):
    opened = open_tiny(tmp_path)
    made = [KD(beta, temperature) for beta in (0.0, 1.0) for temperature in (0.5, 20.0)]
    made += [BiLD(top_k, temperature) for top_k in (3, 8, 64) for temperature in (1.0, 20.0)]
    made += [SwitchKD(window=window, min_k=min_k) for window in (8, 128, None) for min_k in (3, 8)]
    made += [SwitchKD(align=0.0, switch=0.1), SwitchKD(align=5.0, switch=0.0, temperature=20.0)]
    made += [SwitchKD(softmax=softmax, direction=way) for softmax in ("all", "row") for way in ("forward", "reverse")]
    made += [SwitchKD(softmax="row", top_k=k, temperature=20.0, t_squared=True) for k in (3, 64)]
    for one in made:
        step = DistillationStep(opened.pair, one)
        lines = list(method.directions(Examined(replace(opened, step=step))))
        assert [line.level for line in lines] == ["ok" for _ in one.directions], (one, lines)


# ---- steps, memory, speed


def test_a_stage_of_no_steps(tmp_path):
    opened = open_tiny(tmp_path)
    short = replace(opened, stage=replace(opened.stage, max_steps=-1, num_train_epochs=0.1))
    (line,) = stage.steps(Examined(short))
    assert (line.level, line.detail) == ("ok", "1 optimizer steps over 3 rows")  # a tenth of an epoch is a step too
    none = replace(opened, stage=replace(opened.stage, max_steps=-1), rows=opened.rows.select([]))
    (line,) = stage.steps(Examined(none))
    assert (line.level, line.detail) == ("failed", "0 optimizer steps over 0 rows")


def test_a_stage_in_which_nothing_learns(tmp_path):
    opened = open_tiny(tmp_path, method=KD())
    opened.pair.student.requires_grad_(False)
    assert failed(opened) == {"trainable parameters"}


@pytest.mark.long
def test_too_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free_bytes", lambda device: 1000)
    assert failed(open_tiny(tmp_path)) == {"memory"}
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    level, detail = found(open_tiny(tmp_path))["memory"]
    assert level == "warning"
    assert "without sharding" in detail


def test_memory_that_cannot_be_estimated_is_a_finding(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise ValueError("8 images are 288 visual tokens")

    monkeypatch.setattr(memory, "estimate", refuse)
    assert found(open_tiny(tmp_path))["memory"] == ("failed", "ValueError: 8 images are 288 visual tokens")


def in_half(opened):
    recipe = opened.run.recipe
    recipe = replace(recipe, train=replace(recipe.train, bf16=True))
    return replace(opened, run=replace(opened.run, recipe=recipe))


@pytest.mark.long
@pytest.mark.parametrize("half", [False, True])
def test_every_check_runs_the_models_under_the_recipes_autocast(tmp_path, half):
    opened = in_half(open_tiny(tmp_path)) if half else open_tiny(tmp_path)
    seen = []
    for pathway in (opened.pair.student, opened.pair.teacher):
        for part in ("vision", "language"):
            pathway.part(part)[0].register_forward_pre_hook(
                lambda *ignored: seen.append(torch.is_autocast_enabled("cpu"))
            )
    examined = Examined(opened)
    for name, check in RUNNING.items():
        examined.samples  # encoded, as by the checks that come before  # noqa: B018
        seen.clear()
        assert all(line.level != "failed" for line in check(examined)), name
        assert set(seen) == (set() if name == "memory" else {half}), name


@pytest.mark.long
def test_data_that_come_too_slowly(tmp_path, monkeypatch):
    """By a clock of its own: encoding a row takes 10 s, all else nothing."""
    now = 0.0

    def clock():
        nonlocal now
        now += 1e-3
        return now

    class Slow(Collator):
        def encode(self, row):
            nonlocal now
            now += 10
            return super().encode(row)

    for module in (loader, samples):
        monkeypatch.setattr(module, "perf_counter", clock)
    opened = open_tiny(tmp_path)
    slow = Slow(opened.collator.student, opened.collator.teachers)
    level, detail = found(replace(opened, collator=slow))["data loader"]
    assert level == "warning"
    assert "workers would keep up" in detail


def test_waiting():
    assert loader.waiting(1.0, 3.0, workers=0) == pytest.approx(0.25)  # they take turns
    assert loader.waiting(1.0, 3.0, workers=1) == 0
    assert loader.waiting(8.0, 1.0, workers=2) == pytest.approx(0.75)  # a row in 4 s, of which 1 s is work


def test_an_error_is_a_finding(tmp_path):
    opened = open_tiny(tmp_path, sizes=SIZES[:1])

    def broken(batch):
        raise RuntimeError("out of order")

    opened.pair.student.see = broken
    assert found(opened)["image tokens"] == ("failed", "RuntimeError: out of order")
