"""A teacher's cache: training with it is training without it, it goes on where it was killed, and what does not fit it is refused."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from caches import ROWS, contents, opened, recipe_of, renamed, without_cache, write_pair
from PIL import Image
from ranks import run_on_two_ranks
from run_files import write_data, write_model
from tiny_tokenizers import VICUNA

from switchkd.batch import TEACHER
from switchkd.cli import main
from switchkd.data import store_shards
from switchkd.data.collate import Collator
from switchkd.data.errors import DataError
from switchkd.data.packing import PackCollator
from switchkd.data.teacher_store import TeacherStore, describe
from switchkd.models import Pathway
from switchkd.models.teacher_head import TeacherHead
from switchkd.recipe.schema import save_recipe
from switchkd.train import teacher_cache
from switchkd.train.memory import estimate
from switchkd.train.stage import index_rows, open_run, open_stage
from switchkd.train.teacher_cache import make_caches


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Two models that read alike."""
    return Runs(tmp_path_factory.mktemp("alike"), apart=False)


@pytest.fixture(scope="module", params=["alike", pytest.param("apart", marks=pytest.mark.slow)])
def pair(request, tmp_path_factory):
    """The same, and two of which each reads in its own way."""
    if request.param == "alike":
        return request.getfixturevalue("alike")
    return Runs(tmp_path_factory.mktemp("apart"), apart=True)


class Runs:
    """The runs with the teacher's cache, which is in three shards, and one without; opened once for all tests."""

    def __init__(self, folder, *, apart):
        self.folder = folder
        write_pair(folder, apart=apart)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_shards, "_SHARD_ROWS", 2)
            make_caches(recipe_of(folder))
        self.recipes = {"head": recipe_of(folder), "switch": recipe_of(folder, "switch_kd")}
        self.recipes["live"] = without_cache(self.recipes["switch"])
        self.runs = {name: open_run(recipe) for name, recipe in self.recipes.items()}
        self.rows = index_rows(self.runs["live"], self.recipes["live"].resolved_stages()[0], folder / "scratch")

    def context(self, name, method="kd", **sections):
        stage = recipe_of(self.folder, method, **sections).resolved_stages()[0]
        stage = replace(stage, teacher=self.recipes[name].teacher)
        return open_stage(self.runs[name], stage, self.folder / "scratch", self.rows)


@pytest.fixture
def reopened(alike, monkeypatch):
    """Commands and trainings that do not load the models anew; two rows in a shard."""
    monkeypatch.setattr(store_shards, "_SHARD_ROWS", 2)
    monkeypatch.setattr(teacher_cache, "open_run", lambda recipe, use_cache: renamed(alike.runs["live"], recipe))
    return alike.folder


def reading(alike, recipe, scratch):
    """A stage of the recipe, its cache looked through as training does; the models are not loaded anew."""
    run = renamed(alike.runs["head"], recipe, TeacherStore(Path(recipe.teacher.cache)))
    return open_stage(run, recipe.resolved_stages()[0], scratch)


def step_of(context, loss="fused", batch=None):
    """Loss, terms and gradients of one step, on all rows where no batch is given, and how often the teacher saw and spoke."""
    asked, teacher = {"see": 0, "say": 0}, context.pair.teacher
    for name in asked if teacher is not None else ():
        plain = getattr(Pathway, name)

        def counted(*given, name=name, plain=plain):
            asked[name] += 1
            return plain(teacher, *given)

        setattr(teacher, name, counted)
    context.pair.student.zero_grad()
    context.step.loss = loss
    sums = context.step(context.collator(list(context.rows)) if batch is None else batch, dropped_mass=True)
    sums.loss.backward()
    gradients = {name: p.grad.clone() for name, p in context.pair.student.named_parameters() if p.grad is not None}
    return sums, gradients, asked


METHODS = {"kd": "kd", "bild": "bild", "align": {"name": "switch_kd", "switch": 0.0}, "switch": "switch_kd"}


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_a_step_with_the_cache_is_the_step_without_it(pair, name):
    cached = pair.context("switch" if name == "switch" else "head", METHODS[name])
    live = pair.context("live", METHODS[name])
    if name == "switch":  # fitted to what is seen in one of the runs, and by chance of rounding not the same in both
        assert (cached.pair.bridge is None) == (live.pair.bridge is None)
        live.pair.bridge = cached.pair.bridge
    for loss in ("fused", "plain"):
        sums, gradients, asked = step_of(cached, loss)
        expected, expected_gradients, asked_live = step_of(live, loss)
        for kind in ("terms", "statistics"):
            values, others = (getattr(one, kind) for one in (sums, expected))
            assert values.keys() == others.keys()
            for term, value in others.items():
                assert values[term].item() == pytest.approx(value.item(), rel=1e-6), term
        assert gradients.keys() == expected_gradients.keys()
        for parameter, gradient in expected_gradients.items():
            assert torch.allclose(gradients[parameter], gradient, rtol=1e-4, atol=1e-6), parameter
        if name == "switch":
            assert (asked, asked_live) == ({"see": 0, "say": 1}, {"see": 1, "say": 2})
        else:
            assert (cached.pair.teacher, asked_live) == (None, {"see": 1, "say": 1})


@pytest.mark.parametrize("name", ["kd", "switch"])
def test_packed_rows_read_the_cache_that_padded_ones_made(pair, name):
    """Three samples in the first row and three in the second, against one sample in a row and the teacher itself."""
    cached = pair.context("switch" if name == "switch" else "head", METHODS[name])
    live = pair.context("live", METHODS[name])
    if name == "switch":
        live.pair.bridge = cached.pair.bridge
    rows = list(cached.rows)
    packed = PackCollator(cached.collator)([rows[:3], rows[3:]])
    assert packed.student.offsets is not None
    sums, gradients, _ = step_of(cached, batch=packed)
    expected, expected_gradients, _ = step_of(live)
    for term, value in expected.terms.items():
        # the switch's is small, and made of differences of logits in float32
        assert sums.terms[term].item() == pytest.approx(value.item(), rel=1e-5, abs=1e-6), term
    for parameter, gradient in expected_gradients.items():
        bound = 1e-4 * gradient.abs().max() + 1e-5  # the true gradient of a bias of keys is 0
        assert (gradients[parameter] - gradient).abs().max() <= bound, parameter


def test_with_batches_of_the_same_rows_what_is_kept_is_what_the_teacher_says_to_the_bit(pair):
    context, store = pair.context("live"), TeacherStore(pair.folder / "cache")
    lengths = pair.rows["length"][:]
    ordered = sorted(range(ROWS), key=lambda number: (lengths[number], number))  # as they were asked, two at a time
    for begin in range(0, ROWS, 2):
        batch = context.collator([pair.rows[number] for number in ordered[begin : begin + 2]])
        said = context.pair.teacher_says(batch)
        groups = [said, *([said.first_words] if said.first_words is not None else [])]
        whose = [batch.student.sample if one.answers is None else batch.student.sample[one.answers] for one in groups]
        for number, key in enumerate(batch.keys):
            expected = torch.cat([one.teacher.hidden[w == number] for one, w in zip(groups, whose, strict=True)])
            assert torch.equal(store.read(key), expected)


def test_all_that_is_loaded_of_the_teacher_is_its_head(pair):
    context, whole = pair.context("head"), pair.context("live")
    rows, width = whole.pair.teacher.head.weight.shape
    head = context.pair.teacher_head
    assert isinstance(context.run.teachers.weights_for(context.stage)[TEACHER], TeacherHead)
    assert sum(p.numel() for p in head.parameters()) == rows * width
    assert torch.equal(head.weight, whole.pair.teacher.head.weight)
    of_pair, of_student = (
        sum(p.numel() for p in module.parameters()) for module in (context.step, context.pair.student)
    )
    assert of_pair == of_student + rows * width


@pytest.mark.slow
def test_the_memory_estimate_knows_that_the_teacher_is_not_there(pair):
    recipe, teacher = pair.recipes["head"], pair.context("live").pair.teacher
    configs = pair.runs["live"].student.model.config, teacher.model.config
    with_cache, without = (estimate(one, one.resolved_stages()[0], *configs) for one in (recipe, without_cache(recipe)))
    whole = sum(tensor.numel() * 4 for tensor in (*teacher.parameters(), *teacher.buffers()))
    head = teacher.head.weight.numel() * 4
    assert without.weights - with_cache.weights == pytest.approx(whole - head, rel=1e-3)
    assert with_cache.flops < without.flops
    assert with_cache.peak < without.peak


# ---- largest logits


@pytest.fixture(scope="module")
def largest(pair):
    """Number of logits that are kept → what the command said of them, and a stage that reads them."""
    found = {}
    for kept in (8, 64):
        recipe = recipe_of(pair.folder, cache=f"cache-{kept}", teacher={"cache_logits": kept})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(teacher_cache, "open_run", lambda recipe, use_cache: renamed(pair.runs["live"], recipe))
            (made,) = make_caches(recipe)
        context = pair.context("head")
        found[kept] = (
            made,
            replace(
                context,
                collator=Collator(
                    pair.runs["live"].reader,
                    {TEACHER: context.teacher.reading},
                    {TEACHER: TeacherStore(made.folder)},
                ),
            ),
        )
    return found


def test_largest_logits_tell_what_they_leave_out(pair, largest):
    live = step_of(pair.context("live"))[0].terms["kd"].item()
    errors, uncovered, left_out = [], [], []
    for made, context in largest.values():
        sums = step_of(context)[0]
        errors.append(abs(sums.terms["kd"].item() - live))
        uncovered.append(sums.statistics["uncovered_mass"].item() / sums.compared)
        left_out.append(made.left_out)
    assert errors[0] > errors[1] > 0
    assert 1 > uncovered[0] > uncovered[1] > 0
    assert all(0 < mean <= most < 1 for mean, most in left_out)
    assert left_out[0][0] > left_out[1][0]


def test_the_largest_logits_are_the_teachers_own_and_the_rest_is_spread_evenly(pair, largest):
    context, live = largest[8][1], pair.context("live")
    said = [one.pair(one.collator(list(pair.rows))).compared[TEACHER] for one in (context, live)]
    for stored, expected in zip(*([one, *([one.first_words] if one.first_words else [])] for one in said), strict=True):
        have, true = stored.teacher.rows(slice(None)), expected.teacher.rows(slice(None)).log_softmax(dim=-1)
        kept = true.topk(min(8, true.shape[1])).indices
        assert torch.allclose(have.gather(1, kept), true.gather(1, kept), atol=1e-5)
        assert torch.allclose(have.exp().sum(dim=1), torch.ones(len(have)), atol=1e-5)
        others = have.scatter(1, kept, -torch.inf).amax(dim=1)
        assert torch.allclose(others, have.amin(dim=1))


# ---- going on


class _PowerCutError(Exception):
    pass


@pytest.mark.long
def test_what_was_begun_is_finished_with_the_same_bytes(reopened, alike, tmp_path, monkeypatch):
    write, written = teacher_cache.write_shard, []

    def dying(folder, shard, answers):
        if len(written) == 1:
            (folder / "shards" / f".{shard.name}.1").write_bytes(b"half")
            raise _PowerCutError
        written.append(shard.name)
        write(folder, shard, answers)

    recipe = recipe_of(reopened, cache=str(tmp_path / "cache"))
    monkeypatch.setattr(teacher_cache, "write_shard", dying)
    with pytest.raises(_PowerCutError):
        make_caches(recipe)
    assert describe(tmp_path / "cache").startswith(f"{tmp_path}/cache is not complete (1 shards are written)")
    with pytest.raises(DataError, match=r"is not complete \(1 shards are written\): run `switchkd cache RECIPE.yaml`"):
        reading(alike, recipe, tmp_path / "scratch")
    monkeypatch.setattr(teacher_cache, "write_shard", write)
    assert make_caches(recipe)[0].written == ROWS - 2
    assert contents(tmp_path / "cache") == contents(reopened / "cache")
    assert make_caches(recipe)[0].written == 0
    assert contents(tmp_path / "cache") == contents(reopened / "cache")


def test_a_byte_that_changed_is_found_by_training_and_mended_by_the_command(reopened, alike, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    shutil.copytree(reopened / "cache", cache)
    recipe = recipe_of(reopened, cache=str(cache))
    shard = sorted((cache / "shards").iterdir())[1]
    damaged = bytearray(shard.read_bytes())
    damaged[-9] ^= 1  # in the hidden states, which stand last
    shard.write_bytes(damaged)
    context = reading(alike, recipe, tmp_path / "scratch")
    with pytest.raises(DataError, match=rf"sample 'train-\d': {shard} is damaged \(its checksum is [0-9a-f]{{8}}, and"):
        context.collator(list(context.rows))
    assert make_caches(recipe)[0].written == 2
    assert contents(cache) == contents(reopened / "cache")


def test_a_picture_that_was_replaced_is_found_by_training_and_answered_anew_by_the_command(
    reopened, alike, tmp_path, monkeypatch
):
    shutil.copytree(reopened / "data", tmp_path / "data")
    recipe = recipe_of(reopened, cache=str(tmp_path / "cache"), data={"train": str(tmp_path / "data" / "train.json")})
    assert make_caches(recipe)[0].written == ROWS
    before = reading(alike, recipe, tmp_path / "scratch").rows
    row = next(row for row in before if row["images"])
    Image.new("RGB", (48, 48), "green").save(row["images"][0]["path"])
    with pytest.raises(DataError, match=r"sample 'train-\d': .* pictures or their files have changed.*`switchkd cache"):
        reading(alike, recipe, tmp_path / "scratch")
    assert make_caches(recipe)[0].written > 0
    again = reading(alike, recipe, tmp_path / "scratch").rows
    changed = [new["id"] for old, new in zip(before, again, strict=True) if old["key"] != new["key"]]
    assert row["id"] in changed
    assert len(changed) < ROWS


def test_a_disk_that_has_no_room_is_told_before_anything_is_written(reopened, alike, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(
        OSError, match=r"6 of 6 rows .*: \d+ answer tokens x 160 bytes, 0\.0 MiB; 0\.0 MiB are free\. Make room"
    ):
        make_caches(recipe_of(reopened, cache=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache" / "shards").iterdir())


# ---- what does not fit


def moved(folder: Path, target: Path) -> Path:
    """A copy whose recipe names the cache of the original."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("cache*", "run", "scratch"))
    return target


def another_template(folder):
    for who in ("teacher", "student"):
        (folder / who / "chat_template.jinja").write_text(VICUNA)


def another_processor(folder):
    for who in ("teacher", "student"):
        file = folder / who / "processor_config.json"
        settings = json.loads(file.read_text())
        settings["image_processor"]["image_mean"] = [0.1, 0.1, 0.1]
        file.write_text(json.dumps(settings))


def another_teacher(folder):
    write_model(folder / "teacher", seed=7, hidden=40, depth=3)


CHANGES = {
    "template": (another_template, {}, r"chat template: \w{16} in the cache, \w{16} now"),
    "processor": (another_processor, {}, r"processor: \w{16} in the cache, \w{16} now"),
    "teacher": (another_teacher, {}, r"teacher: \w{16} in the cache, \w{16} now"),
    "limit": (lambda folder: None, {"data": {"max_length": 200}}, "max_length: 256 in the cache, 200 now"),
    "dtype": (lambda folder: None, {"teacher": {"dtype": "bfloat16"}}, "dtype: auto in the cache, bfloat16 now"),
    "kind": (
        lambda folder: None,
        {"teacher": {"cache_logits": 8}},
        "kept: hidden states in the cache, the 8 largest logits now",
    ),
    "precision": (lambda folder: None, {"train": {"bf16": True}}, "mixed precision: no in the cache, bf16 now"),
}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *(
            (name, "train") if name in ("teacher", "template") else pytest.param(name, "train", marks=pytest.mark.slow)
            for name in CHANGES
        ),
        pytest.param("template", "cache", marks=pytest.mark.slow),
        pytest.param("kind", "cache", marks=pytest.mark.slow),
    ],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(alike, tmp_path, name, command):
    change, sections, message = CHANGES[name]
    folder = moved(alike.folder, tmp_path / "moved")
    change(folder)
    recipe = recipe_of(folder, cache=str(alike.folder / "cache"), **sections)
    before = contents(alike.folder / "cache")
    with pytest.raises(DataError, match=f"{alike.folder}/cache holds the answers of something else: .*{message}"):
        opened(recipe, tmp_path / "scratch") if command == "train" else make_caches(recipe)
    assert contents(alike.folder / "cache") == before


def test_rows_that_the_cache_has_not_are_named_and_the_command_adds_them(reopened, alike, tmp_path):
    file, cache = tmp_path / "train.json", tmp_path / "cache"
    shutil.copytree(reopened / "cache", cache)
    rows = json.loads((reopened / "data" / "train.json").read_text())
    rows[3]["conversations"][1]["value"] = "another answer"
    rows.append({**rows[4], "id": "new"})
    file.write_text(json.dumps(rows))
    recipe = recipe_of(reopened, cache=str(cache), data={"train": str(file), "image_root": str(reopened / "data")})
    message = r"sample 'train-3': .* the row there has the digest (\w{16}) and this one (\w{16}): .* 2 of 7 rows are lacking: run"
    with pytest.raises(DataError, match=message):
        reading(alike, recipe, tmp_path / "scratch")
    (made,) = make_caches(recipe)
    assert (made.rows, made.written) == (7, 3)  # the shard of rows 2 and 3, and that of the new one
    context = reading(alike, recipe, tmp_path / "scratch")
    assert len(context.collator(list(context.rows)).keys) == 7
    rows[0]["id"] = "never seen"
    file.write_text(json.dumps(rows))
    with pytest.raises(
        DataError, match=r"sample 'never seen': .* has not this row; it is not there\. 1 of 7 rows are lacking"
    ):
        reading(alike, recipe, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("method", "site"),
    [
        ("feature_kd", r"feature_kd of stage train compares what is inside the teacher \(Vision\(\)\)"),
        ("llava_kd", "llava_kd of stage train compares what is inside the teacher"),
        ("align_kd", "align_kd of stage train compares what is inside the teacher"),
        ("compodistill", "compodistill of stage train compares what is inside the teacher"),
        ("align_ti", "align_ti of stage train compares what is inside the teacher"),
        ("em_kd", "em_kd of stage train compares what is inside the teacher"),
        (
            {"name": "switch_kd", "switch_layers": 1},
            r"switch_kd of stage train compares what is inside the teacher \(Switched",
        ),
        ({"name": "switch_kd", "features": 1.0}, "switch_kd.* of stage train compares what is inside the teacher"),
    ],
)
def test_methods_that_look_inside_the_teacher_refuse_a_cache(tmp_path, method, site):
    with pytest.raises(
        ValueError, match=f"teacher.cache is set, and method {site}.*take `cache` out, or choose a method"
    ):
        recipe_of(tmp_path, method)


def test_the_head_alone_is_refused_where_the_teacher_itself_is_needed(alike):
    context = alike.context("head")
    batch = context.collator([context.rows[0]])
    bare = batch._replace(shared={TEACHER: batch.shared[TEACHER]._replace(stored=None)})
    with pytest.raises(ValueError, match="of the teacher there is the head alone: give the `Collator` the store"):
        context.pair(bare)


# ---- stages, and the commands


@pytest.mark.slow
def test_one_cache_serves_every_stage_that_asks_and_no_other_is_asked(alike, tmp_path):
    half = tmp_path / "half.json"
    half.write_text(json.dumps(json.loads((alike.folder / "data" / "train.json").read_text())[:3]))
    stages = [
        {"name": "first", "train": ["projector"], "method": {"name": "kd"}},
        {"name": "labels", "method": {"name": "sft"}, "data": str(half)},
        {"name": "second", "method": {"name": "bild"}, "data": str(half)},
    ]
    data = {"image_root": str(alike.folder / "data")}
    recipe = recipe_of(alike.folder, cache=str(tmp_path / "cache"), stages=stages, data=data)
    assert make_caches(recipe)[0].rows == ROWS
    run = open_run(recipe)
    for stage in recipe.resolved_stages():
        context = open_stage(run, stage, tmp_path / stage.name)
        batch = context.collator([context.rows[0]])
        assert (TEACHER in batch.shared) == (stage.name != "labels")
        assert context.step(batch).loss.isfinite()


@pytest.mark.slow
def test_the_commands_fill_it_train_with_it_and_say_how_far_it_is(alike, tmp_path, capsys):
    recipe = recipe_of(
        alike.folder,
        cache=str(tmp_path / "cache"),
        train={"output": str(tmp_path / "run"), "max_steps": 1, "logging_steps": 1},
    )
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert f"teacher's cache: {tmp_path}/cache holds none yet: run `switchkd cache" in capsys.readouterr().err
    assert main(["cache", str(tmp_path / "recipe.yaml")]) == 0
    told = capsys.readouterr().err
    assert f"{tmp_path}/cache: 6 of 6 rows are to be written: 46 answer tokens x 160 bytes" in told
    assert "asking the teacher: 6 of 6" in told
    assert f"{tmp_path}/cache: 6 rows, 46 answer tokens; 6 rows were written now" in told
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    assert f"teacher's cache: {tmp_path}/cache is complete: 6 rows, hidden states, 0.00 GiB" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert (tmp_path / "run" / "student" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": None}, "the recipe names no folder for a cache"),
        ({"method": "sft"}, "no stage of the recipe learns from the teacher"),
        ({"teacher": {"cache_logits": 320}}, "teacher.cache_logits is 320, and 320 ids are compared"),
        ({"cache": "data"}, r"/data is not empty and no teacher's cache \(images\): name another folder"),
    ],
)
def test_what_cannot_be_cached_is_told(reopened, changes, message):
    if "teacher" in changes:
        changes = {**changes, "cache": "cache-too-many"}
    with pytest.raises(ValueError, match=message):
        make_caches(recipe_of(reopened, **changes))


def test_held_out_rows_are_kept_with_the_others(reopened, tmp_path):
    write_data(tmp_path / "held.json", 3)
    recipe = recipe_of(reopened, cache=str(tmp_path / "cache"), data={"validation": str(tmp_path / "held.json")})
    assert make_caches(recipe)[0].rows == ROWS + 3


def test_answers_that_the_student_will_write_are_in_no_cache(tmp_path):
    with pytest.raises(ValueError, match=r"on_policy and teacher\.cache are both given"):
        recipe_of(tmp_path, on_policy={"share": 0.5})


def test_a_stream_is_in_no_cache(tmp_path):
    with pytest.raises(ValueError, match=r"teacher\.cache is given and data\.streaming is true"):
        recipe_of(tmp_path, data={"streaming": True})


@pytest.mark.parametrize("rows", ["packing", "streaming"])
def test_a_student_writes_no_answers_into_rows_that_are_packed_or_streamed(tmp_path, rows):
    with pytest.raises(ValueError, match=rf"on_policy is given and data\.{rows} is true"):
        recipe_of(tmp_path, cache=None, on_policy={"share": 0.5}, data={rows: True})


def test_a_count_of_logits_without_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cache_logits is 8, and no cache is named"):
        recipe_of(tmp_path, cache=None, teacher={"cache_logits": 8})


@pytest.mark.slow
def test_two_processes_write_a_half_each_and_what_one_process_writes(reopened, tmp_path, monkeypatch):
    monkeypatch.setattr(store_shards, "_SHARD_ROWS", 1)
    make_caches(recipe_of(reopened, cache=str(tmp_path / "one")))
    save_recipe(recipe_of(reopened, cache=str(tmp_path / "two")), tmp_path / "recipe.yaml")
    run_on_two_ranks("cache_on_two_ranks.py", tmp_path / "recipe.yaml", tmp_path)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    written = [(tmp_path / f"rank-{rank}").read_text().split() for rank in (0, 1)]
    assert [len(names) for names in written] == [ROWS // 2, ROWS // 2]
    assert not set(written[0]) & set(written[1])
