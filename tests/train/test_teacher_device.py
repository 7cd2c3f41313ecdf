"""A teacher on a device of its own: what crosses, and where; the same numbers as beside the student; and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from caches import recipe_of, write_pair
from run_files import write_data
from two_devices import HERE, THERE, TwoDevices

from switchkd import distill
from switchkd.manifest import read_manifest
from switchkd.recipe.schema import Teacher, Train, build_recipe
from switchkd.train.memory import estimate, left_out
from switchkd.train.stage import open_run, open_stage
from switchkd.train.teacher_cache import make_caches
from switchkd.train.teacher_device import check_devices

SITES = {"name": "align_kd", "focus": 0.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pairs that read alike, and that differ in all and need a bridge."""
    made = {}
    for name in ("alike", "apart"):
        made[name] = tmp_path_factory.mktemp(name)
        write_pair(made[name], apart=name == "apart")
    return made


@pytest.fixture(scope="module")
def runs(folders):
    """Pair and device → its models, opened once."""
    return {
        (name, device): open_run(recipe_of(folder, "switch_kd", cache=None, teacher={"device": device}))
        for name, folder in folders.items()
        for device in (None, "cpu")
    }


def stage_of(runs, scratch, name, method, device):
    """The stage of a method on two rows; the models are not opened anew."""
    run = runs[name, device]
    recipe = replace(run.recipe, data=replace(run.recipe.data, rows=2))
    (stage,) = recipe_of(scratch, method, cache=None).resolved_stages()
    stage = replace(stage, teacher=recipe.teacher, data=recipe.data.train)
    return open_stage(replace(run, recipe=recipe), stage, scratch)


def step(context):
    """Loss, terms and gradients of a step on two rows."""
    context.pair.zero_grad()
    sums = context.step(context.collator(list(context.rows)), dropped_mass=True)
    sums.loss.backward()
    gradients = {name: p.grad.clone() for name, p in context.pair.named_parameters() if p.grad is not None}
    return sums, gradients


CASES = [
    ("alike", "switch_kd"),
    ("apart", "switch_kd"),
    ("alike", SITES),
    ("apart", {"name": "feature_kd"}),
    ("alike", "kd"),
    ("apart", {"name": "kd", "weights": "visual"}),
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "method"), CASES, ids=str)
def test_the_numbers_are_those_of_one_device_to_the_bit(runs, tmp_path, name, method):
    beside, elsewhere = (stage_of(runs, tmp_path, name, method, device) for device in (None, "cpu"))
    if beside.pair.bridge is not None:
        elsewhere.pair.bridge.load_state_dict(beside.pair.bridge.state_dict())
    if beside.pair.learned is not None:
        elsewhere.pair.learned.load_state_dict(beside.pair.learned.state_dict())
    (sums, gradients), (others, other_gradients) = step(beside), step(elsewhere)
    assert sums.loss.item() == others.loss.item()
    assert {term: value.item() for term, value in sums.terms.items()} == {
        term: value.item() for term, value in others.terms.items()
    }
    assert gradients.keys() == other_gradients.keys()
    assert all(torch.equal(gradient, other_gradients[key]) for key, gradient in gradients.items())


@pytest.mark.parametrize(
    ("name", "method", "crossed"),
    [
        # its pixels and V_S(x) go over, the hidden states of teacher and switch come back
        ("alike", "switch_kd", {(THERE, False): 1, (THERE, True): 1, (HERE, False): 1, (HERE, True): 1}),
        ("apart", "switch_kd", {(THERE, False): 1, (THERE, True): 1, (HERE, False): 1, (HERE, True): 1}),
        ("alike", "kd", {(THERE, False): 1, (HERE, False): 1}),
        # of each row, what is captured of the teacher comes back too
        ("alike", SITES, None),
        ("apart", {"name": "feature_kd"}, None),
        ("apart", {"name": "kd", "weights": "visual"}, None),
        ("alike", {"name": "switch_kd", "window": 32, "instructed": 1.0, "weights": "visual"}, None),
    ],
    ids=str,
)
def test_every_operation_is_on_one_device_and_little_crosses(runs, tmp_path, name, method, crossed):
    context = stage_of(runs, tmp_path, name, method, "cpu")
    expected = step(context)
    devices = TwoDevices()
    head, crossing = context.pair.teacher_head, context.pair.crossing
    devices.divide(context.pair)
    batch = context.collator(list(context.rows))
    with devices:
        batch = batch._with(lambda tensor: devices.put(tensor, HERE))
        context.pair.zero_grad()
        sums = context.step(batch, dropped_mass=True)
        sums.loss.backward()
    assert devices.place(sums.loss) == HERE
    assert sums.loss.item() == expected[0].loss.item()
    assert all(devices.place(p.grad) == HERE for p in context.pair.parameters() if p.grad is not None)
    if crossed is not None:
        assert devices.crossed == crossed
    context.pair.teacher_head, context.pair.crossing = head, crossing


def test_what_is_prepared_moved_and_sharded_has_the_student_and_the_head_alone(runs, tmp_path):
    beside, elsewhere = (stage_of(runs, tmp_path, "alike", "switch_kd", device) for device in (None, "cpu"))
    names = {name.split(".")[1] for name, _ in elsewhere.step.named_parameters()}
    assert names == {"student", "teacher_head"}
    assert elsewhere.pair.teacher is not None
    assert not any(p.requires_grad for p in elsewhere.pair.teacher.parameters())
    assert elsewhere.pair.train().teacher.training is False
    elsewhere.step.to(torch.float64)
    try:
        assert {p.dtype for p in elsewhere.pair.teacher.parameters()} == {torch.float32}
    finally:
        elsewhere.step.to(torch.float32)
    assert {name.split(".")[1] for name, _ in beside.step.named_parameters()} == {"student", "teacher"}


@pytest.mark.long
def test_the_estimate_leaves_out_what_lies_elsewhere(runs, tmp_path):
    context = stage_of(runs, tmp_path, "alike", "switch_kd", None)
    teacher, stage = context.pair.teacher, context.stage
    configs = context.pair.student.model.config, teacher.model.config
    batch = context.collator(list(context.rows))
    apart = replace(stage, teacher=replace(stage.teacher, device="cpu"))
    beside, elsewhere = (estimate(context.run.recipe, one, *configs, batch) for one in (stage, apart))
    whole = sum(tensor.numel() * 4 for tensor in (*teacher.parameters(), *teacher.buffers()))
    assert beside.weights - elsewhere.weights == pytest.approx(whole - teacher.head.weight.numel() * 4, rel=1e-3)
    assert beside.switch > 10 * elsewhere.switch
    assert elsewhere.switch >= 4 * 40 * len(batch.student.targets)  # its hidden states come back
    assert (elsewhere.optimizer, elsewhere.flops) == (beside.optimizer, beside.flops)
    assert elsewhere.peak < beside.peak - whole + teacher.head.weight.numel() * 4 + 1
    assert left_out(apart) == "; without the teacher's weights and activations, which are on cpu"


@pytest.mark.long
def test_a_cache_is_filled_by_a_teacher_elsewhere(folders, tmp_path):
    made = [
        make_caches(recipe_of(folders["apart"], "kd", cache=str(tmp_path / str(device)), teacher={"device": device}))[0]
        for device in (None, "cpu")
    ]
    beside, elsewhere = (sorted((one.folder / "shards").iterdir()) for one in made)
    assert [file.read_bytes() for file in beside] == [file.read_bytes() for file in elsewhere]


@pytest.mark.slow
def test_a_run_ends_with_the_same_files(folders, tmp_path):
    write_data(tmp_path / "train.json", 4)
    sums = []
    for device in (None, "cpu"):
        output = tmp_path / f"run-{device}"
        recipe = recipe_of(
            folders["apart"],
            "switch_kd",
            cache=None,
            teacher={"device": device},
            data={"train": str(tmp_path / "train.json")},
            train={"output": str(output), "logging_steps": 1},
        )
        distill(recipe)
        (checkpoint,) = output.glob("1-train/checkpoint-2")
        sums.append(
            {
                name: digest
                for name, digest in read_manifest(checkpoint).items()
                if name.endswith((".safetensors", ".json"))
            }
        )
        losses = [
            json.loads(line).get("loss") for line in (output / "1-train" / "metrics.jsonl").read_text().splitlines()
        ]
        sums[-1]["losses"] = losses
    card = (tmp_path / "run-cpu" / "student" / "README.md").read_text()
    assert "| teacher's device | cpu |" in card
    for different in ("trainer_state.json", "log.json"):  # have times in them
        for one in sums:
            one.pop(different, None)
    assert sums[0] == sums[1]


# ---- what is refused


def recipe(teacher, **train):
    sections = {"student": {"path": "s"}, "method": "kd", "data": {"train": "d"}}
    return build_recipe({**sections, "teacher": {"path": "t", **teacher}, "train": {"output": "o", **train}}, "test")


@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:", "cpu:0", "cuda:-1", ""])
def test_a_device_has_one_spelling(device):
    with pytest.raises(ValueError, match=r"device must be cpu, or a card with its number, such as cuda:1, got"):
        Teacher("t", device=device)


@pytest.mark.parametrize(
    ("teacher", "train", "named"),
    [
        ({"quantization": "8bit"}, {}, r"teacher\.quantization is 8bit"),
        ({"attn_implementation": "flash_attention_2"}, {}, r"teacher\.attn_implementation is flash_attention_2"),
        ({}, {"torch_compile": True}, r"train\.torch_compile is true"),
        ({}, {"kernels": "liger"}, r"train\.kernels is liger"),
    ],
)
def test_what_nobody_has_run_with_it_is_refused(teacher, train, named):
    with pytest.raises(ValueError, match=rf"teacher\.device is cpu and {named}, which nobody has run together"):
        recipe({"device": "cpu", **teacher}, **train)


@pytest.mark.parametrize(
    ("count", "seen"),
    [(0, "0 CUDA devices here"), (1, r"1 CUDA device here \(cuda:0\)"), (2, r"2 CUDA devices here \(cuda:0, cuda:1\)")],
)
def test_a_device_that_is_not_there_is_refused_with_those_that_are(monkeypatch, count, seen):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(
        ValueError, match=rf"teacher\.device is cuda:2, and torch sees {seen}: name one that is there, or cpu"
    ):
        check_devices(recipe({"device": "cuda:2"}))
    check_devices(recipe({"device": "cpu"}))


def test_processes_do_not_share_a_card_and_sharded_weights_have_no_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(recipe({"device": "cuda:1"}))
    with monkeypatch.context() as patch:
        patch.setattr("switchkd.train.teacher_device.processes", lambda: type("Two", (), {"num_processes": 2}))
        check_devices(recipe({"device": "cpu"}))
        with pytest.raises(
            ValueError, match=r"2 processes would each put a teacher of their own on that one card: leave it out"
        ):
            check_devices(recipe({"device": "cuda:1"}))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"teacher\.device is cpu, and weights are spread over processes"):
        check_devices(recipe({"device": "cpu"}))


def test_two_sections_that_differ_in_their_device_alone_share_a_cache():
    assert Train("o").kernels == "auto"
    stages = [{"name": "a", "teacher": {"path": "t", "cache": "c", "device": "cpu"}}, {"name": "b"}]
    made = build_recipe(
        {
            "student": {"path": "s"},
            "method": "kd",
            "data": {"train": "d"},
            "train": {"output": "o"},
            "teacher": {"path": "t", "cache": "c"},
            "stages": stages,
        },
        "test",
    )
    assert [stage.teacher.device for stage in made.resolved_stages()] == ["cpu", None]
