"""`train.arguments`, short forms, methods of other packages, and revisions: what a recipe hands on, and what it refuses."""

import sys
from importlib.metadata import EntryPoint

import pytest
import yaml
from transformers import TrainingArguments

from switchkd.methods import KD, SwitchKD, plugins
from switchkd.recipe.packages import check_packages
from switchkd.recipe.parsing import RecipeError
from switchkd.recipe.schema import LoRA, build_recipe, load_recipe, recipe_to_dict, save_recipe
from switchkd.recipe.trainer_arguments import OURS, REFUSED


def tree(**more):
    plain = {"student": {"path": "a"}, "teacher": {"path": "b"}, "data": {"train": "c"}, "train": {"output": "d"}}
    return plain | {"method": {"name": "switch_kd"}} | more


def build(arguments=None, flags=(), **more):
    section = {"train": {"output": "d", "arguments": arguments}} if arguments is not None else {}
    return build_recipe(tree(**section | more), "recipe.yaml", flags)


GIVEN = {
    "optim": "adamw_8bit", "optim_args": "a=1", "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_epsilon": 1e-6, "warmup_steps": 10,
    "run_name": "mine", "save_strategy": "epoch", "ddp_timeout": 7200, "push_to_hub": True, "hub_model_id": "me/mine",
    "lr_scheduler_kwargs": {"num_cycles": 2}, "tf32": False, "dataloader_prefetch_factor": 4, "full_determinism": True,
}  # fmt: skip


def test_arguments_are_held_by_the_recipe_and_read_back(tmp_path):
    recipe = build(GIVEN)
    assert recipe.train.arguments == GIVEN
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert yaml.safe_load((tmp_path / "recipe.yaml").read_text())["train"]["arguments"] == GIVEN
    assert build(GIVEN | {"adam_beta2": 0.9}) != recipe
    assert build().train.arguments == {}


def test_text_of_flags_and_yaml_becomes_what_it_is():
    flags = ["--train.arguments.adam_beta2", "0.95", "--train.arguments.warmup-steps", "10", "--train.arguments.tf32"]
    flags += ["--train.arguments.dataloader_prefetch_factor", "none", "--train.arguments.full_determinism", "false"]
    arguments = build({"adam_epsilon": "1e-6"}, flags).train.arguments
    assert arguments == {
        "adam_epsilon": 1e-6, "adam_beta2": 0.95, "warmup_steps": 10, "tf32": True, "dataloader_prefetch_factor": None,
        "full_determinism": False,
    }  # fmt: skip


BAD = {
    "unknown": ({"adam_bta2": 0.9}, ["adam_bta2", "TrainingArguments does not have", "did you mean `adam_beta"]),
    "nothing near": ({"colour": 1}, ["colour", "does not have"]),
    "ours": ({"learning_rate": 1e-3}, ["learning_rate, which is train.learning_rate here"]),
    "ours by another name": ({"output_dir": "x"}, ["output_dir, which is train.output here"]),
    "a loss of its own": (
        {"label_smoothing_factor": 0.1},
        ["label_smoothing_factor", "the loss is what the method says"],
    ),
    "the launcher's": ({"fsdp": "full_shard"}, ["fsdp", "said to the launcher"]),
    "a secret": ({"hub_token": "hf_x"}, ["hub_token", "HF_TOKEN"]),
    "no checkpoint": ({"save_strategy": "no"}, ["save_strategy must be steps or epoch, got 'no'"]),
    "unknown strategy": ({"save_strategy": "epcoh"}, ["'epcoh' is unknown", "did you mean `epoch`"]),
    "unknown optimizer": ({"optim": "adam_8bit"}, ["'adam_8bit' is unknown", "did you mean `adam"]),
    "a hooking optimizer": ({"optim": "galore_adamw"}, ["galore_adamw", "hook into single layers"]),
    "text for a number": ({"adam_beta1": "x"}, ["adam_beta1 must be of type float, got 'x'"]),
    "a truth for a number": ({"ddp_timeout": True}, ["ddp_timeout must be of type int, got True"]),
    "not finite": ({"adam_beta1": float("nan")}, ["adam_beta1 must be of type float"]),
    "a number for text": ({"run_name": 3}, ["run_name must be of type str, none, got 3"]),
    "an upload to nowhere": ({"push_to_hub": True}, ["push_to_hub", "hub_model_id: OWNER/NAME"]),
    "no mapping": ([1], ["train.arguments", "must be a mapping"]),
}


@pytest.mark.parametrize(("arguments", "phrases"), BAD.values(), ids=BAD)
def test_what_would_break_a_promise_is_refused_with_a_reason(arguments, phrases):
    with pytest.raises(RecipeError) as caught:
        build(arguments)
    assert [phrase for phrase in phrases if phrase not in str(caught.value)] == [], str(caught.value)


def test_two_ways_of_warming_up_are_one_too_many():
    with pytest.raises(RecipeError, match=r"warmup_steps, and warmup_ratio is 0\.1: keep one"):
        build(train={"output": "d", "warmup_ratio": 0.1, "arguments": {"warmup_steps": 3}})


def test_every_refused_name_is_one_of_transformers():
    names = TrainingArguments.__dataclass_fields__.keys()
    assert (REFUSED | OURS).keys() - names == set()
    assert REFUSED.keys() & OURS.keys() == set()
    assert GIVEN.keys() <= names


def test_what_an_optimizer_needs_is_looked_for(monkeypatch):
    monkeypatch.setattr("switchkd.recipe.packages.find_spec", lambda module: module in ("tensorboard",) or None)
    for optimizer, module in (
        ("adamw_8bit", "bitsandbytes"),
        ("lion_32bit", "bitsandbytes"),
        ("adamw_torch_4bit", "torchao"),
    ):
        with pytest.raises(RecipeError, match=f"optim is {optimizer}, which needs {module}, and that is not installed"):
            check_packages(build({"optim": optimizer}))
    for optimizer in ("adamw_torch_fused", "adamw_torch", "adafactor", "sgd"):
        check_packages(build({"optim": optimizer}))


@pytest.mark.parametrize(
    ("more", "flags", "holds"),
    [
        ({"method": "kd"}, [], lambda r: r.method == KD()),
        ({"method": "kd"}, ["--method.beta", "1"], lambda r: r.method == KD(beta=1.0)),
        ({"method": "kd"}, ["--method.name", "switch_kd"], lambda r: r.method == SwitchKD()),
        ({"stages": [{"name": "a", "method": "kd"}]}, [], lambda r: r.stages[0].method == KD()),
        (
            {"method": "switch_kd", "stages": [{"name": "a", "method": {"align": 2}}]},
            [],
            lambda r: r.stages[0].method.align == 2,
        ),
        ({"student": {"path": "a", "lora": True}}, [], lambda r: r.student.lora == LoRA()),
        ({"student": {"path": "a", "lora": False}}, [], lambda r: r.student.lora is None),
        ({"student": {"path": "a", "lora": True}}, ["--student.lora.r", "4"], lambda r: r.student.lora == LoRA(r=4)),
        ({}, ["--student.lora"], lambda r: r.student.lora == LoRA()),
        ({}, ["--student.lora", "true"], lambda r: r.student.lora == LoRA()),
        ({}, ["--train.bf16"], lambda r: r.train.bf16 is True),
        ({}, ["--train.bf16", "--train.seed", "3"], lambda r: (r.train.bf16, r.train.seed) == (True, 3)),
        ({}, ["--train.bf16", "false"], lambda r: r.train.bf16 is False),
        ({"student": {"path": "a", "revision": "v1"}}, [], lambda r: r.student.revision == "v1"),
        ({}, ["--teacher.revision", "abc"], lambda r: r.teacher.revision == "abc"),
    ],
)
def test_short_forms(more, flags, holds):
    assert holds(build(flags=flags, **more))


@pytest.mark.parametrize(
    "flag", ["--train.seed", "--data.train", "--pair.bridge", "--student.freeze", "--teacher.path"]
)
def test_only_a_switch_may_stand_without_a_value(flag):
    with pytest.raises(RecipeError, match=f"{flag} needs a value"):
        build(flags=[flag])


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from switchkd.methods import Method

@dataclass(frozen=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    weight: float = 1.0
    def token_terms(self, logits):
        return {}

class NoMethod:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


def test_a_method_of_another_package(package):
    recipe = build(method={"name": "own_package.mine:Mine", "weight": 2})
    assert (recipe.method.name, recipe.method.weight) == ("mine", 2.0)
    assert recipe_to_dict(recipe)["method"] == {"name": "own_package.mine:Mine", "weight": 2.0}
    save_recipe(recipe, package / "recipe.yaml")
    assert load_recipe(package / "recipe.yaml") == recipe
    with pytest.raises(RecipeError, match="`method` has no `wieght`; did you mean `weight`"):
        build(method={"name": "own_package.mine:Mine", "wieght": 2})


def test_a_method_by_an_entry_point(package, monkeypatch):
    point = EntryPoint("mine", "own_package.mine:Mine", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group, name: [point] * (name == "mine"))
    recipe = build(method="mine")
    assert recipe.method.name == "mine"
    save_recipe(recipe, package / "recipe.yaml")
    assert load_recipe(package / "recipe.yaml") == recipe
    with pytest.raises(RecipeError, match=r"method\.name: 'mien' is unknown"):
        build(method="mien")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_package.mine:NoMethod", "is no method: it must be a dataclass"),
        ("own_package.mine:Nothing", "cannot be imported .*has no attribute 'Nothing'.*PYTHONPATH"),
        ("not_there.mine:Mine", "cannot be imported .*No module named 'not_there'"),
        (":Mine", "cannot be imported"),
        ("os:system", "is no method"),
    ],
)
@pytest.mark.usefixtures("package")
def test_what_is_no_method_of_another_package(name, message):
    with pytest.raises(RecipeError, match=message):
        build(method=name)
