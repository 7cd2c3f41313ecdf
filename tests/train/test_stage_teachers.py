"""A teacher for each stage: each is met, kept, checked and named as the one teacher of a recipe is, and one at most is in memory."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from caches import ROWS, recipe_of
from run_files import write_data, write_model
from safetensors.torch import load_file
from tiny_tokenizers import other_processor, sentencepiece_tokenizer

from switchkd import distill
from switchkd.batch import TEACHER
from switchkd.cli import main
from switchkd.models.model_digest import model_digest
from switchkd.models.teacher_head import TeacherHead
from switchkd.recipe.schema import Stage, Teacher, build_recipe, load_recipe, save_recipe
from switchkd.report import probe
from switchkd.train import stage as stage_module
from switchkd.train.open_teacher import load_teacher
from switchkd.train.run import reopened
from switchkd.train.stage import index_rows, open_run, open_stage
from switchkd.train.teacher_cache import make_caches

FOREIGN = "large"
#: Of the stages of a run.
FOLDERS = ("1-first", "2-labels", "3-last")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student; a small teacher that reads as it does; a large one that reads in its own way and needs a bridge."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "student", seed=2)
    write_model(folder / "small", seed=1, hidden=40, depth=3)
    processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
    size = {"hidden": 64, "width": 48, "image_size": 48, "vocabulary": 448}
    write_model(folder / FOREIGN, seed=3, processor=processor, **size)
    write_data(folder / "data" / "train.json", ROWS)
    return folder


def stages_of(folder, **caches):
    teachers = {name: {"path": str(folder / name), "cache": caches.get(name)} for name in (FOREIGN, "small")}
    return [
        {"name": "first", "method": "switch_kd", "teacher": teachers[FOREIGN], "max_steps": 1},
        {"name": "labels", "method": "sft", "max_steps": 1},
        {"name": "last", "method": "kd", "teacher": teachers["small"], "max_steps": 1},
    ]


def taught(folder, **changes):
    """A recipe whose stages alone name teachers."""
    recipe = recipe_of(folder, cache=None, **{"stages": stages_of(folder), "pair": {"min_aligned": 0.01}} | changes)
    return replace(recipe, teacher=None)


class Loads(list):
    """The teachers that are loaded, and how many of the earlier ones are still in memory then."""

    def __init__(self):
        super().__init__()
        self._models = []

    def __call__(self, recipe, teacher, **how):
        self.append((teacher.path.rpartition("/")[2], sum(model() is not None for model in self._models)))
        model = load_teacher(recipe, teacher, **how)
        self._models.append(weakref.ref(model))
        return model


@pytest.fixture(scope="module")
def trained(models, tmp_path_factory):
    """A run of three stages, and what it loaded."""
    folder, loads = tmp_path_factory.mktemp("trained"), Loads()
    recipe = taught(models, train={"output": str(folder / "run"), "logging_steps": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_module, "load_teacher", loads)
        distill(recipe)
    return recipe, folder / "run", loads


@pytest.mark.long
def test_each_teacher_is_loaded_once_and_let_go_of_before_the_next_one(trained):
    _, _, loads = trained
    assert loads == [(FOREIGN, 0), ("small", 0)]


@pytest.mark.long
def test_each_stage_remembers_its_own_teacher(trained, models):
    _, run, _ = trained
    origins = [json.loads((run / name / "checkpoint-1" / "origin.json").read_text()) for name in FOLDERS]
    digests = {name: model_digest(str(models / name)) for name in (FOREIGN, "small")}
    assert [origin["teacher"] for origin in origins] == [digests[FOREIGN], None, digests["small"]]


@pytest.mark.long
def test_the_card_names_every_teacher_and_what_it_differs_in(trained, models):
    card = (trained[1] / "student" / "README.md").read_text()
    assert f"| teacher | `{models / FOREIGN}` → `{models / 'small'}` |" in card
    assert f"- {models / FOREIGN}: feature width: 32 and 48" in card
    assert f"- {models / 'small'}: " not in card


@pytest.mark.long
def test_the_bridge_of_an_earlier_teacher_is_there_when_sharded_models_are_opened_anew(trained):
    recipe, run, _ = trained
    opened = open_run(recipe)
    stages = recipe.resolved_stages()[:2]
    indexed = [
        (stage, run / name, index_rows(opened, stage, run / name), None)
        for stage, name in zip(stages, FOLDERS, strict=False)
    ]
    again = reopened(recipe, indexed)
    bridge = again.teachers.of(stages[0]).bridge
    saved = load_file(run / "1-first" / "checkpoint-1" / "bridge.safetensors")
    assert bridge.fitted
    assert all(torch.equal(tensor, saved[name]) for name, tensor in bridge.state_dict().items())


@pytest.mark.long
def test_the_report_compares_with_the_last_teacher(trained):
    recipe, run, _ = trained
    pair, _ = probe._open(load_recipe(run / "recipe.yaml"), run, frozenset({"student", "teacher"}))
    assert pair.teacher.head.weight.shape[1] == 40
    assert recipe.last_teacher == recipe.stages[2].teacher


@pytest.fixture(scope="module")
def contexts(models, tmp_path_factory):
    """Stage → its loss on all rows, before anything has been trained, and its compared ids; with and without a cache."""
    folder = tmp_path_factory.mktemp("cached")
    caches = {name: str(folder / name) for name in (FOREIGN, "small")}
    cached = taught(models, stages=stages_of(models, **caches))
    made = make_caches(cached)
    return folder, made, {"live": seen(taught(models), folder), "cached": seen(cached, folder)}


def seen(recipe, scratch):
    run, found = open_run(recipe), {}
    for stage in recipe.resolved_stages():
        context = open_stage(run, stage, scratch / stage.name)
        context.pair.eval()
        batch = context.collator(list(context.rows))
        held = context.pair.teacher_head or context.pair.teacher
        found[stage.name] = (context.step(batch).loss.item(), context.pair.vocabulary, type(held).__name__, batch)
        del context, held
    return found


@pytest.mark.long
def test_a_stage_computes_what_a_recipe_with_that_teacher_alone_computes(models, contexts, tmp_path):
    live = contexts[2]["live"]
    for stage in taught(models).resolved_stages()[::2]:
        alone = {"path": stage.teacher.path}
        recipe = recipe_of(models, stage.method.name, cache=None, pair={"min_aligned": 0.01}, teacher=alone)
        ((loss, ids, kind, batch),) = seen(recipe, tmp_path / stage.name).values()
        assert live[stage.name][:3] == (loss, ids, kind)
        assert live[stage.name][3].keys == batch.keys
    assert live["first"][1] != live["last"][1]
    assert (live["first"][2], live["labels"][2], live["last"][2]) == ("Pathway", "NoneType", "Pathway")
    assert live["labels"][3].readers == {}
    assert live["last"][3].readers[TEACHER] is live["last"][3].student
    assert live["first"][3].readers[TEACHER] is not live["first"][3].student


@pytest.mark.long
def test_each_cached_teacher_fills_and_reads_a_folder_of_its_own(contexts):
    folder, made, both = contexts
    assert [(one.folder, one.rows, one.written) for one in made] == [
        (folder / FOREIGN, ROWS, ROWS),
        (folder / "small", ROWS, ROWS),
    ]
    for name, kind in (("first", "Pathway"), ("last", TeacherHead.__name__)):
        assert both["cached"][name][0] == pytest.approx(both["live"][name][0], rel=1e-6)
        assert both["cached"][name][2] == kind


def test_the_dry_run_names_every_stages_teacher_and_cache(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "switchkd.train.memory.estimate",
        lambda recipe, stage, student, teacher: teacher and teacher.text_config.hidden_size,
    )
    save_recipe(taught(models, stages=stages_of(models, small=str(tmp_path / "cache"))), tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run", "--json"]) == 0
    shown = capsys.readouterr()
    stages = json.loads(shown.out)["stages"]
    assert [stage["teacher"] for stage in stages] == [str(models / FOREIGN), None, str(models / "small")]
    assert [stage["memory"].split(",")[0] for stage in stages] == ["64", "None", "40"]
    assert f"stage 3, last: kd from {models}/small trains vision" in shown.err
    assert f"teacher's cache: {tmp_path}/cache holds none yet" in shown.err


# ---- recipes


def recipe(**sections):
    return build_recipe(
        {"student": {"path": "s"}, "method": "kd", "data": {"train": "d"}, "train": {"output": "o"}} | sections, "test"
    )


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"stages": [{"name": "a", "method": "sft", "teacher": {"path": "t"}}]},
            "stage a names a teacher, and its method sft learns from none",
        ),
        (
            {"stages": [{"name": "a", "teacher": {"path": "t"}}, {"name": "b"}]},
            "stage b: method kd needs a teacher, and the recipe names none",
        ),
        (
            {"teacher": {"path": "t", "cache": "c"}, "stages": [{"name": "a", "teacher": {"path": "u", "cache": "c"}}]},
            r"two teachers keep what they say in one folder, teacher\.cache c: t and u",
        ),
        ({"stages": [{"name": "a", "teacher": {"dtype": "float32"}}]}, r"stages\.0\.teacher: needs `path`"),
        (
            {"stages": [{"name": "a", "method": "feature_kd", "teacher": {"path": "t", "cache": "c"}}]},
            r"method feature_kd of stage a compares what is inside the teacher",
        ),
        (
            {"stages": [{"name": "a", "max_steps": 1, "teacher": {"path": "t", "cache": "c"}}], "data": {"train": "d", "streaming": True}},
            r"teacher\.cache is given and data\.streaming is true",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        recipe(**sections)


def test_a_stage_takes_the_recipes_teacher_where_it_names_none():
    one, other = Teacher("t"), Teacher("u")
    made = recipe(teacher={"path": "t"}, stages=[Stage("a", teacher=other), Stage("b"), {"name": "c", "method": "sft"}])
    assert [stage.teacher for stage in made.resolved_stages()] == [other, one, None]
    assert made.teacher_sections == {"teacher": one, "stages.0.teacher": other}
    assert made.last_teacher == one


def test_a_missing_folder_and_damaged_weights_of_a_later_teacher_are_told_before_anything_is_trained(
    models, tmp_path, capsys
):
    save_recipe(taught(models), tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--stages.2.teacher.path", str(tmp_path / "gone")]) == 1
    assert f"{tmp_path}/gone: no such folder" in capsys.readouterr().err
    write_model(tmp_path / "other", seed=1, hidden=40, depth=3)
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["text_config"]["hidden_size"] = 32
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"other: \d+ tensors have another shape than config.json says"):
        open_run(load_recipe(tmp_path / "recipe.yaml", ["--stages.2.teacher.path", str(tmp_path / "other")]))
