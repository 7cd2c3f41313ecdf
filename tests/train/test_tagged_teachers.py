"""Several teachers of which every row names one: each row is taught as by that teacher alone, and a batch is the sum of its rows."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tagged import TURNS, opened, recipe_of, tree_of, write_models, write_rows

from switchkd.batch import TaggedBatch
from switchkd.cli import main
from switchkd.data.tagged import TaggedCollator, taught_by
from switchkd.models.model_digest import model_digest
from switchkd.models.teacher_head import TeacherHead
from switchkd.recipe.schema import build_recipe, load_recipe
from switchkd.report import probe
from switchkd.train import checkpoint
from switchkd.train.memory import estimate
from switchkd.train.stage import open_run, open_stage
from switchkd.train.teacher_cache import make_caches

pytestmark = pytest.mark.long
ROWS = 10
SWITCH = {"name": "switch_kd", "window": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    write_rows(folder / "data" / "mixed.json", ROWS)
    write_rows(folder / "data" / "held-out.json", 5)
    for tag in ("ocr", "general"):
        write_rows(folder / "data" / f"{tag}.json", ROWS, (tag,))
    return folder


def trained(tree, folder):
    """The run of a recipe, through the command line."""
    file = folder / "recipe.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree))
    assert main(["train", str(file)]) == 0
    return folder / "run"


def lines(run, *names):
    found = [json.loads(line) for file in sorted(run.glob("*/metrics.jsonl")) for line in file.read_text().splitlines()]
    return [{name: line[name] for name in ("step", "loss", "grad_norm", *names)} for line in found if "loss" in line]


def tensors(folder):
    return {
        f"{file.name}:{name}": tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


# ---- as with that teacher alone


@pytest.mark.parametrize(
    ("tag", "method", "others"),
    [
        ("ocr", "align_kd", None),
        ("general", SWITCH, "small"),
        pytest.param("general", "kd", "small", marks=pytest.mark.slow),
    ],
    ids=["maps", "bridge and own inputs", "own inputs"],
)
def test_rows_of_one_tag_are_trained_as_by_this_teacher_alone_bit_for_bit(models, tmp_path, tag, method, others):
    """Weights, what learns with them, and the log. (Maps of another teacher, whose gradient is 0, would change last bits of its norm.)"""
    own = {"ocr": "small", "general": "foreign"}[tag]
    data = models / "data" / f"{tag}.json"
    tree = tree_of(models, data, tmp_path / "tagged" / "run", method, **{"ocr": others, "general": others} | {tag: own})
    tree["teachers"] = {name: tree["teachers"][name] for name in sorted(tree["teachers"], key=lambda name: name != tag)}
    tagged = trained(tree, tmp_path / "tagged")
    alone = tree_of(models, data, tmp_path / "alone" / "run", method, teacher={"path": str(models / own)})
    del alone["teachers"]
    alone = trained(alone, tmp_path / "alone")
    assert lines(tagged, "answer_tokens", "ce", "learning_rate") == lines(alone, "answer_tokens", "ce", "learning_rate")
    found, expected = (tensors(run / "1-train" / "checkpoint-3") for run in (tagged, alone))
    own_maps = {name.replace(f".{tag}.safetensors", ".safetensors"): tensor for name, tensor in found.items()}
    assert_equal({name: own_maps[name] for name in expected}, expected)
    assert_equal(*(tensors(run / "student") for run in (tagged, alone)))


METHODS = {
    "kd": ("small", "foreign"),
    "bild": ("small", "foreign"),
    "switch_kd": ("small", "foreign"),
    "llava_mod": ("small", "twin"),
    "llava_kd": ("small", "twin"),
    "align_kd": ("small", "twin"),
    "feature_kd": ("small", "foreign"),
    "em_kd": ("small", "twin"),
    "compodistill": ("small", "twin"),
}


def parts_of(context, models, method, teachers, folder):
    """Tag → the stage with this teacher alone, with what the mixed one learns with it."""
    made = {}
    for tag, name in zip(("ocr", "general"), teachers, strict=True):
        alone = tree_of(
            models, models / "data" / "mixed.json", folder / "run", method, teacher={"path": str(models / name)}
        )
        del alone["teachers"]
        one = opened(build_recipe(alone, "test"), folder / tag)
        for own, mixed in zip(
            one.pair.auxiliary_modules.values(), context.step.pairs[tag].auxiliary_modules.values(), strict=True
        ):
            assert (own is None) == (mixed is None)
            if own is not None:
                own.load_state_dict(mixed.state_dict())
        made[tag] = one
    return made


def gradients(step):
    found = {name: p.grad.clone() for name, p in step.pair.student.named_parameters() if p.grad is not None}
    return found | {
        f"{name}:{key}": p.grad.clone()
        for name, module in step.auxiliary_modules.items()
        if module is not None
        for key, p in module.named_parameters()
        if p.grad is not None
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_mixed_batch_is_the_sum_over_the_rows_of_each_teacher(models, tmp_path, method):
    """Loss, terms and gradients, by stages that know one teacher each."""
    teachers = METHODS[method]
    settings = SWITCH if method == "switch_kd" else method
    context = opened(
        recipe_of(
            models, models / "data" / "mixed.json", tmp_path / "run", settings, ocr=teachers[0], general=teachers[1]
        ),
        tmp_path / "mixed",
    )
    batch = context.collator(list(context.rows))
    assert isinstance(batch, TaggedBatch)
    assert [len(part.keys) for part in batch.parts.values()] == [6, 4]
    context.step.eval()
    whole = context.step(batch)
    whole.loss.backward()
    found = gradients(context.step)
    loss, answers, expected, terms = 0.0, 0, {}, {}
    for tag, one in parts_of(context, models, settings, teachers, tmp_path).items():
        one.step.eval()
        sums = one.step(one.collator(list(taught_by(one.rows, tag))))
        sums.loss.backward()
        loss, answers = loss + sums.loss.item(), answers + sums.answers
        for name, value in sums.terms.items():
            terms[name] = terms.get(name, 0.0) + value.item()
        for name, gradient in gradients(one.step).items():
            name = name.replace(":", f".{tag}:", 1) if ":" in name else name
            expected[name] = expected.get(name, 0.0) + gradient
    assert whole.loss.item() == pytest.approx(loss, rel=1e-6)
    assert whole.answers == answers
    assert {name: value.item() for name, value in whole.terms.items()} == pytest.approx(terms, rel=1e-5)
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6 * largest.item(), msg=name)


def test_the_keys_of_rows_are_those_that_they_have_with_their_teacher_alone(models, tmp_path):
    context = opened(recipe_of(models, models / "data" / "mixed.json", tmp_path / "run"), tmp_path / "mixed")
    expected = dict.fromkeys(context.rows["id"][:])
    for tag, one in parts_of(context, models, "kd", ("small", "foreign"), tmp_path).items():
        expected |= {row["id"]: row["key"] for row in taught_by(one.rows, tag)}
    assert dict(zip(context.rows["id"][:], context.rows["key"][:], strict=True)) == expected


# ---- a run


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """Two teachers, one of them over a bridge; held-out rows; a stage from labels before it."""
    folder = tmp_path_factory.mktemp("run")
    tree = tree_of(
        models, models / "data" / "mixed.json", folder / "run", SWITCH,
        data={"train": str(models / "data" / "mixed.json"), "validation": str(models / "data" / "held-out.json"), "max_length": 256},
        train={"eval_steps": 1, "eval_questions": 0},
        stages=[{"name": "labels", "method": "sft", "max_steps": 1}, {"name": "both"}],
    )  # fmt: skip
    trained(tree, folder)
    return folder


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(run, tmp_path):
    before = tmp_path / "before"
    shutil.copytree(run / "run", before, symlinks=True)
    shutil.rmtree(run / "run" / "student")
    for step in (2, 3):
        shutil.rmtree(run / "run" / "2-both" / f"checkpoint-{step}")
    assert main(["train", str(run / "recipe.yaml")]) == 0
    assert "resuming from" in (run / "run" / "train.log").read_text()
    names = {path.name for path in (run / "run" / "2-both" / "checkpoint-3").glob("*.safetensors")}
    assert names == {"model.safetensors", "bridge.general.safetensors"}
    assert_equal(*(tensors(folder / "2-both" / "checkpoint-3") for folder in (run / "run", before)))
    assert lines(run / "run") == lines(before)


def test_other_tags_are_other_rows_and_are_not_gone_on_with(models, tmp_path, capsys):
    """Of teachers that read alike, so that nothing else of the rows changes."""
    data = write_rows(tmp_path / "data" / "mixed.json", ROWS)
    tree = tree_of(models, data, tmp_path / "run", general="twin", train={"max_steps": 2})
    trained(tree, tmp_path)
    shutil.rmtree(tmp_path / "run" / "1-train" / "checkpoint-2")
    swapped = {"ocr": "general", "general": "ocr"}
    write_rows(data, ROWS, tuple(swapped[tag] for tag in TURNS))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    error = capsys.readouterr().err
    assert "checkpoint-1 was trained from something else than this start: rows: 10 rows (" in error
    assert main(["train", str(tmp_path / "recipe.yaml"), "--accept-changes"]) == 0


def test_a_checkpoint_remembers_each_teacher(run, models):
    origin = json.loads((run / "run" / "2-both" / "checkpoint-3" / "origin.json").read_text())
    assert {name: value for name, value in origin.items() if name.startswith("teacher")} == {
        "teacher ocr": model_digest(str(models / "small")),
        "teacher general": model_digest(str(models / "foreign")),
    }
    labels = json.loads((run / "run" / "1-labels" / "checkpoint-1" / "origin.json").read_text())
    assert labels["teacher"] is None


def test_the_card_says_whose_rows_are_whose(run, models):
    card = (run / "run" / "student" / "README.md").read_text()
    assert f"| teacher | `{models}/small` (rows of ocr) + `{models}/foreign` (rows of general) |" in card
    assert f"- {models}/foreign: feature width: 32 and 48" in card
    assert "teacher ocr: vision sdpa" in card
    assert "  ocr:\n    path: " in card


def test_held_out_rows_are_measured_by_their_own_teachers(run, tmp_path):
    recipe = load_recipe(run / "recipe.yaml")
    opened_run, stage = open_run(recipe), recipe.resolved_stages()[1]
    context = open_stage(opened_run, stage, tmp_path / "stage")
    checkpoint.load(context.step, run / "run" / "2-both" / "checkpoint-3")
    with torch.no_grad():
        context.step.eval()
        sums = context.step(context.collator(list(context.held_out.rows)))
    found = [json.loads(line) for line in (run / "run" / "2-both" / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in found if "eval_loss" in line][-1]
    assert last["eval_answer_tokens"] == sums.answers
    assert last["eval_loss"] == pytest.approx(sums.loss.item() / sums.answers, rel=1e-5)
    assert last["eval_switch"] == pytest.approx(sums.terms["switch"].item() / sums.answers, rel=1e-5)


def test_another_run_goes_on_with_the_bridge_of_each(run, models, tmp_path):
    tree = tree_of(models, models / "data" / "mixed.json", tmp_path / "run", SWITCH)
    tree["student"] = {"path": str(run / "run"), "continue_run": True}
    context = opened(build_recipe(tree, "test"), tmp_path / "stage")
    saved = load_file(run / "run" / "2-both" / "checkpoint-3" / "bridge.general.safetensors")
    assert_equal(context.step.pairs["general"].bridge.state_dict(), saved)
    assert context.run.continued.described.endswith("with its bridge")


def test_the_report_compares_with_the_first_teacher(run):
    recipe = load_recipe(run / "run" / "recipe.yaml")
    pair, _ = probe._open(recipe, run / "run", frozenset({"student", "teacher"}))
    assert pair.teacher.head.weight.shape[1] == 40
    assert probe._which(recipe) == ("of the teachers ocr, general the first is compared with",)


# ---- together with everything else


def losses(models, folder, method=SWITCH, **sections):
    """The lines of a short run."""
    tree = tree_of(models, models / "data" / "mixed.json", folder / "run", method, **sections)
    return lines(trained(tree, folder))


@pytest.fixture(scope="module")
def plain(models, tmp_path_factory):
    """Two steps, of sgd: its updates are as good as its gradients."""
    folder = tmp_path_factory.mktemp("plain")
    return losses(models, folder, train={"max_steps": 2, "arguments": {"optim": "sgd"}})


@pytest.mark.parametrize(
    "changes",
    [
        {"train": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}},
        pytest.param({"train": {"loss": "plain"}}, marks=pytest.mark.slow),
        pytest.param({"train": {"dataloader_num_workers": 1}}, marks=pytest.mark.slow),
        pytest.param({"train": {"gradient_checkpointing": True, "switch_checkpointing": True}}, marks=pytest.mark.slow),
        {"teachers": {"ocr": {"path": "small", "device": "cpu"}, "general": {"path": "foreign", "device": "cpu"}}},
    ],
    ids=["accumulated", "plain loss", "workers", "recomputed", "on devices of their own"],
)
def test_a_step_is_the_same_however_it_is_computed(models, plain, tmp_path, changes):
    changes = {name: dict(section) for name, section in changes.items()}
    for teacher in changes.get("teachers", {}).values():
        teacher["path"] = str(models / teacher["path"])
    changes["train"] = {"max_steps": 2, "arguments": {"optim": "sgd"}} | changes.get("train", {})
    found = losses(models, tmp_path, **changes)
    for one, other in zip(found, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_packed_rows_of_several_teachers_are_the_padded_ones(models, tmp_path):
    data = models / "data" / "mixed.json"
    padded = opened(recipe_of(models, data, tmp_path / "run", SWITCH), tmp_path / "padded")
    packing = {"train": str(data), "max_length": 256, "packing": True}
    packed = opened(recipe_of(models, data, tmp_path / "run", SWITCH, data=packing), tmp_path / "packed")
    sums = []
    for context, batch in (
        (padded, padded.collator(list(padded.rows))),
        (packed, packed.collate([packed.packs[number] for number in range(len(packed.packs))])),
    ):
        for pair in context.step.pairs.values():
            if pair.bridge is not None:
                pair.bridge.load_state_dict(padded.step.pairs["general"].bridge.state_dict())
        context.step.eval()
        with torch.no_grad():
            sums.append(context.step(batch))
        assert set(batch.parts) == {"ocr", "general"}
    assert batch.parts["ocr"].student.offsets is not None
    assert sorted(batch.keys) == sorted(packed.rows["key"][:])
    assert sums[0].answers == sums[1].answers
    assert sums[1].loss.item() == pytest.approx(sums[0].loss.item(), rel=1e-5)
    losses(models, tmp_path / "trained", data=packing)


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("kd", {"data": {"streaming": True, "shuffle_buffer": 4}}),
        (SWITCH, {"on_policy": {"share": 0.5, "max_new_tokens": 4}}),
        pytest.param("kd", {"train": {"group_by_length": True}}, marks=pytest.mark.slow),
        pytest.param("kd", {"student": {"lora": {"r": 4, "alpha": 8}}}, marks=pytest.mark.slow),
    ],
    ids=["a stream", "answers of the student", "length groups", "adapters"],
)
def test_it_goes_together_with(models, tmp_path, method, sections):
    found = losses(models, tmp_path, method, **sections)
    assert [line["step"] for line in found] == [1, 2, 3]
    assert all(line["loss"] > 0 and line["grad_norm"] > 0 for line in found)


def test_each_teacher_has_a_cache_of_its_own_rows(models, tmp_path):
    data = models / "data" / "mixed.json"
    live = recipe_of(models, data, tmp_path / "run")
    cached = replace(
        live, teachers={tag: replace(one, cache=str(tmp_path / tag)) for tag, one in live.teachers.items()}
    )
    made = make_caches(cached)
    assert [(one.folder.name, one.rows, one.written) for one in made] == [("ocr", 6, 6), ("general", 4, 4)]
    sums = []
    for recipe, kind in ((live, "Pathway"), (cached, TeacherHead.__name__)):
        context = opened(recipe, tmp_path / kind)
        context.step.eval()
        for pair in context.step.pairs.values():
            assert type(pair.teacher_head or pair.teacher).__name__ == kind
        with torch.no_grad():
            sums.append(context.step(context.collator(list(context.rows))).loss.item())
    assert sums[1] == pytest.approx(sums[0], rel=1e-6)


def test_spare_rows_let_a_batch_of_one_tag_run_all_models(models, tmp_path):
    """As processes need it over which weights are spread; nothing is learned from them."""
    context = opened(recipe_of(models, models / "data" / "mixed.json", tmp_path / "run", SWITCH), tmp_path / "stage")
    own = list(taught_by(context.rows, "ocr"))
    spares = {tag: one.rows[0] for tag, one in context.by_teacher.items()}
    batch, filled = context.collator(own), TaggedCollator(context.collator.collators, spares)(own)
    assert (set(batch.parts), set(filled.parts)) == ({"ocr"}, {"ocr", "general"})
    context.step.eval()
    found = []
    for one in (batch, filled):
        context.step.zero_grad()
        sums = context.step(one)
        sums.loss.backward()
        found.append((sums.loss.item(), sums.answers, gradients(context.step)))
    assert found[0][:2] == found[1][:2]
    for name, gradient in found[1][2].items():
        torch.testing.assert_close(gradient, found[0][2].get(name, torch.zeros_like(gradient)), msg=name)


# ---- what is told


def finding(findings, check):
    (detail,) = [(line["level"], line["detail"]) for line in findings if line["check"] == check]
    return detail


def test_the_doctor_examines_each_teacher_with_its_own_rows(models, tmp_path, capsys):
    tree = tree_of(models, models / "data" / "mixed.json", tmp_path / "run", SWITCH)
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    assert main(["doctor", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    found = shown["findings"]
    assert finding(found, "train: teachers") == ("ok", "ocr teaches 6, general teaches 4 of 10 rows")
    assert finding(found, "train: teacher ocr: answer tokens")[1].endswith("are the same in both tokenizers")
    assert (
        "are compared with the same text of the teacher" in finding(found, "train: teacher general: answer tokens")[1]
    )
    for tag in ("ocr", "general"):
        assert finding(found, f"train: teacher {tag}: switch")[0] == "ok"
    assert finding(found, "train: memory")[0] == "ok"
    assert len([line for line in found if line["check"].endswith("steps")]) == 1
    assert any(sample["name"].startswith("train: teacher general: mixed-") for sample in shown["samples"])


def test_a_teacher_that_no_row_names_is_told(models, tmp_path, capsys):
    tree = tree_of(models, models / "data" / "ocr.json", tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    assert main(["doctor", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    level, detail = finding(json.loads(capsys.readouterr().out)["findings"], "train: teachers")
    assert level == "warning"
    assert "No row is taught by general, whose weights lie in memory all the same" in detail


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("orc", "is to be taught by 'orc', and the recipe has the teachers ocr, general"),
        (None, "names no teacher, and the recipe has the teachers ocr, general"),
    ],
)
def test_a_row_without_a_teacher_is_named_with_its_file(models, tmp_path, capsys, tag, message):
    data = write_rows(tmp_path / "data" / "train.json", 4, ("ocr", tag))
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree_of(models, data, tmp_path / "run")))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    error = capsys.readouterr().err
    assert f"{data}, line 1, row 1 (id 'train-1'): {message}" in error


def test_files_have_a_teacher_for_rows_that_name_none(models, tmp_path):
    own = write_rows(tmp_path / "data" / "own.json", 4, ("general", None))
    none = write_rows(tmp_path / "data" / "none.json", 3, (None,))
    data = [{"path": str(own), "teacher": "ocr"}, {"path": str(none), "teacher": "general", "weight": 2}]
    context = opened(recipe_of(models, data, tmp_path / "run"), tmp_path / "stage")
    assert context.rows["teacher"][:] == ["general", "ocr"] * 2 + ["general"] * 6


def test_memory_counts_every_teacher(models, tmp_path):
    context = opened(recipe_of(models, models / "data" / "mixed.json", tmp_path / "run", SWITCH), tmp_path / "stage")
    configs = {tag: pair.teacher.model.config for tag, pair in context.step.pairs.items()}
    needed = estimate(context.run.recipe, context.stage, context.pair.student.model.config, configs)
    size = sum(p.numel() * p.element_size() for p in context.step.parameters())
    assert needed.weights == pytest.approx(size, rel=0.01)
    elsewhere = replace(context.stage.tagged["general"], device="cpu")
    stage = replace(context.stage, tagged=context.stage.tagged | {"general": elsewhere})
    apart = estimate(context.run.recipe, stage, context.pair.student.model.config, configs)
    teacher = context.step.pairs["general"].teacher.model
    head = context.step.pairs["general"].teacher.head.weight
    away = sum(p.numel() * p.element_size() for p in teacher.parameters()) - head.numel() * head.element_size()
    assert needed.weights - apart.weights == pytest.approx(away, rel=0.01)
    assert needed.peak > apart.peak


def test_the_dry_run_names_the_teachers(models, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree_of(models, "data.json", tmp_path / "run")))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    (stage,) = json.loads(shown.out)["stages"]
    assert stage["teachers"] == {"ocr": f"{models}/small", "general": f"{models}/foreign"}
    assert stage["teacher"] is None
    assert f"kd from {models}/small and {models}/foreign trains vision" in shown.err
    assert "GiB per device at the peak" in stage["memory"]


def test_data_answer_asks_which_of_them_answers(models, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree_of(models, "data.json", tmp_path / "run")))
    assert main(["data", "answer", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "out.jsonl")]) == 1
    assert "names several teachers (ocr: " in capsys.readouterr().err


def test_a_stage_may_have_one_teacher_for_all_rows(models, tmp_path):
    stages = [
        {"name": "one", "teacher": {"path": str(models / "twin")}, "max_steps": 1},
        {"name": "both", "max_steps": 1},
    ]
    run = trained(tree_of(models, models / "data" / "mixed.json", tmp_path / "run", stages=stages), tmp_path)
    origins = [json.loads((run / name / "checkpoint-1" / "origin.json").read_text()) for name in ("1-one", "2-both")]
    assert origins[0]["teacher"] == model_digest(str(models / "twin"))
    assert set(origins[1]) >= {"teacher ocr", "teacher general"}
    card = (run / "student" / "README.md").read_text()
    assert (
        f"| teacher | `{models}/twin` → `{models}/small` (rows of ocr) + `{models}/foreign` (rows of general) |" in card
    )
