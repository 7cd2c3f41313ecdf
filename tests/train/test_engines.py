"""DDP and FSDP2, as their shipped configurations start them on two processes: the run of one process, and a run that loses a process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from engine_runs import ENGINES, RUNS, UNSHARDED, launch, steps, trained_alone, weights, write_runs
from run_files import ANSWER_ALONE
from steps import make_trainer
from tiny_models import tiny_llava
from tiny_videos import video_processor, write_files

from switchkd.processes import sharded
from switchkd.recipe.schema import load_recipe
from switchkd.train.launch import check_launch
from switchkd.train.sharding import cut_by_layers, put

SCRIPT = Path(__file__).parents[1] / "lib" / "train_recipes.py"
#: How much losses and weights may differ from those of one process, relative to themselves and to the largest of their tensor.
NEAR = {"float32": 1e-5, "bf16": 5e-2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """All recipes, each trained by one process."""
    folder = tmp_path_factory.mktemp("engines")
    recipes = write_runs(folder, [name for name in RUNS if name not in UNSHARDED])
    for recipe in recipes:
        trained_alone(recipe)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_are_one_that_is_cut_up(alone, tmp_path, engine):
    """Steps of four rows and a last one of three, most of them and whole steps without a picture; maps that are learned and a tied
    student; a bridge; adapters over accumulated and recomputed steps; two stages, of which the first has no teacher; bfloat16; packed rows;
    answers of the student; rows of two teachers, one over a bridge.
    """
    names = [name for name in RUNS if engine == "ddp" or name not in UNSHARDED]
    recipes = write_runs(tmp_path, names)
    process = launch(engine, SCRIPT, *recipes)
    output, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, output[-3000:]
    for name, recipe in zip(names, recipes, strict=True):
        near = NEAR["bf16" if name == "bf16" else "float32"]
        # what the student draws depends on the rows, of which the paths of their pictures are a part
        of_one = trained_alone(recipe) if name in UNSHARDED else alone / f"{name}-alone"
        two, one = steps(tmp_path / name), steps(of_one)
        assert [line["step"] for line in two] == [line["step"] for line in one]
        assert len(two) == {"stages": 12, "lora": 4, "packed": 4}.get(name, 6)
        for line, expected in zip(two, one, strict=True):
            assert line.keys() == expected.keys()
            assert line["answer_tokens"] == expected["answer_tokens"]
            assert line["loss"] == pytest.approx(expected["loss"], rel=near), (name, line["step"])
            # under FSDP2 what enters the first layer is bf16 too; later gradients differ more than losses and weights (docs/engines.md)
            if name != "bf16" or line["step"] == 1:
                assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=near), (name, line["step"])
        found, expected = weights(tmp_path / name), weights(of_one)
        assert found.keys() == expected.keys(), name
        for tensor, value in expected.items():
            assert (found[tensor] - value).abs().max() <= near * value.abs().max(), (name, tensor)
    (learned,) = {key.partition(":")[0] for key in weights(tmp_path / "maps")} - {"model.safetensors"}
    assert learned == "learned.safetensors"
    assert any(key.startswith("bridge.safetensors") for key in weights(tmp_path / "bridge"))
    assert any(key.startswith("lora.safetensors") for key in weights(tmp_path / "lora"))
    assert any(key.startswith("bridge.b.safetensors") for key in weights(tmp_path / "tags"))
    if engine == "ddp":
        assert any(line["on_policy_rows"] > 0 for line in steps(tmp_path / "on_policy"))
    card = (tmp_path / "stages" / "student" / "README.md").read_text()
    assert f"| processes | 2 on cpu ({'FSDP' if engine == 'fsdp2' else 'MULTI_CPU'}) |" in card


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
def test_videos_on_two_processes_are_those_of_one(tmp_path, engine, name):
    """Steps of two rows, one for each process: a video, a video, a picture, and nothing to see."""
    pytest.importorskip("torchvision")
    write_files(tmp_path, name, video_processor(name))
    tree = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    del tree["evaluate"]
    tree["train"] |= {
        "per_device_train_batch_size": 1,
        "num_train_epochs": 2,
        "report_to": [],
        "arguments": {"optim": "sgd"},
    }
    del tree["train"]["max_steps"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    alone = trained_alone(recipe)
    output, _ = (process := launch(engine, SCRIPT, recipe)).communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    two, one = steps(tmp_path / "run"), steps(alone)
    assert len(two) == len(one) == 4
    for line, expected in zip(two, one, strict=True):
        for value in ("step", "answer_tokens", "loss", "grad_norm"):
            assert line[value] == pytest.approx(expected[value], rel=NEAR["float32"]), (line["step"], value)
    found = weights(tmp_path / "run")
    for tensor, value in weights(alone).items():
        assert (found[tensor] - value).abs().max() <= NEAR["float32"] * value.abs().max(), tensor


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_share_a_stream_and_go_on_in_the_same_place(tmp_path, engine):
    """Each reads files of its own, of rows of two teachers; a resumed run draws the rows that are left."""
    streamed = {"streaming": True, "shuffle_buffer": 4}
    settings = {"max_steps": 6, "save_total_limit": None}
    for folder in ("whole", "broken"):
        (recipe,) = write_runs(tmp_path / folder, ["tags"], **settings)
        tree, rows = json.loads(recipe.read_text()), json.loads((tmp_path / folder / "train.json").read_text())
        for part in range(4):
            (tmp_path / folder / f"part-{part}.json").write_text(json.dumps(rows[3 * part : 3 * part + 3]))
        tree["data"] |= {"train": str(tmp_path / folder / "part-*.json"), **streamed}
        recipe.write_text(json.dumps(tree))
        output, _ = (process := launch(engine, SCRIPT, recipe)).communicate(timeout=900)
        assert process.returncode == 0, output[-3000:]
    whole, broken = (tmp_path / folder / "tags" for folder in ("whole", "broken"))
    (stage,) = broken.glob("1-*")
    assert (stage / "checkpoint-3" / "stream-0.json").read_text() != (
        stage / "checkpoint-3" / "stream-1.json"
    ).read_text()
    for step in range(4, 7):
        shutil.rmtree(stage / f"checkpoint-{step}")
    shutil.rmtree(broken / "student")
    output, _ = (process := launch(engine, SCRIPT, recipe)).communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    assert "step 3 of 6" in (broken / "train.log").read_text()
    values = ("step", "loss", "grad_norm", "answer_tokens")
    lines = [[{name: line[name] for name in values} for line in steps(run)] for run in (whole, broken)]
    assert lines[0] == lines[1]
    expected, found = weights(whole), weights(broken)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_a_run_that_loses_a_process_ends_and_goes_on_to_a_plain_student(tmp_path, engine):
    """SIGKILL of the second process between two saves; the same command then goes on, with the moments of AdamW."""
    settings = {"max_steps": 8, "arguments": {"optim": "adamw_torch"}, "learning_rate": 1e-3, "save_total_limit": None}
    (whole,) = write_runs(tmp_path / "whole", ["stages"], **settings)
    (broken,) = write_runs(tmp_path / "broken", ["stages"], **settings)
    process = launch(engine, SCRIPT, whole)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    stage = tmp_path / "broken" / "stages" / "2-all"
    process = launch(engine, SCRIPT, broken)
    _wait_for(stage / "checkpoint-3", process)
    _, second = sorted(_ranks(process.pid))
    os.kill(second, signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "SIGKILL" in output
    assert time.monotonic() - killed < 60
    assert not (stage.parent / "student").exists()
    process = launch(engine, SCRIPT, broken)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-3000:]
    assert re.search(r"resuming from \S+/2-all/checkpoint-\d, step \d of 8", (stage.parent / "train.log").read_text())
    runs = [tmp_path / folder / "stages" for folder in ("whole", "broken")]
    whole_lines, broken_lines = (
        [{name: line[name] for name in ("step", "loss", "grad_norm")} for line in steps(run)] for run in runs
    )
    assert broken_lines == whole_lines
    assert len(whole_lines) == 16
    expected, found = (weights(run) for run in runs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    student = runs[1] / "student"
    assert not [
        file.name for file in student.iterdir() if "optim" in file.name or file.suffix in (".pt", ".bin", ".pth")
    ]
    picture = tmp_path / "broken" / "images" / "train-0.png"
    answered = subprocess.run(
        [sys.executable, "-c", ANSWER_ALONE, str(student), str(picture)],
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert answered.stdout.startswith("answered ["), answered.stderr[-2000:]


def _ranks(launcher: int) -> list[int]:
    """The processes that a launcher has started, in order."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout
    return [int(word) for word in listed.split()]


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.1)
    raise AssertionError(f"{path} was not written")


# ---- what of it needs no second process


@pytest.fixture
def recipe(tmp_path):
    """One of them."""
    return load_recipe(write_runs(tmp_path, ["lora"])[0])


def launcher_arguments(engine):
    """What accelerate's launcher makes of a shipped configuration and two processes."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = [
        "--config_file",
        str(ENGINES / f"{engine}.yaml"),
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "train.py",
    ]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments


@pytest.fixture
def fsdp(monkeypatch):
    """The environment that accelerate's launcher makes of the shipped configuration."""
    from accelerate.utils.launch import prepare_multi_gpu_env

    for name, value in prepare_multi_gpu_env(launcher_arguments("fsdp2")).items():
        monkeypatch.setenv(name, value)


def test_the_shipped_configuration_of_fsdp_is_taken_and_others_are_refused(recipe, fsdp, monkeypatch):
    assert sharded()
    check_launch(recipe)
    for name, value, said in (
        ("FSDP_VERSION", "1", "FSDP_VERSION is 1, and a run takes 2 only"),
        ("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT", "is sharded_state_dict, and a run takes FULL_STATE_DICT only"),
        ("FSDP_STATE_DICT_TYPE", "", "FSDP_STATE_DICT_TYPE is not set"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "and a run takes TRANSFORMER_BASED_WRAP only"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "FSDP_CPU_RAM_EFFICIENT_LOADING is true"),
        ("FSDP_OFFLOAD_PARAMS", "true", "FSDP_OFFLOAD_PARAMS is true"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "Qwen2DecoderLayer", "models name them themselves"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "train.gradient_checkpointing is true: that alone"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ValueError, match=re.escape(said)):
                check_launch(recipe)


def test_the_shipped_configuration_of_deepspeed_says_zero_3_and_leaves_the_rest_to_the_recipe(recipe, monkeypatch):
    """As far as can be seen without DeepSpeed: every key is one that the launcher reads, and this is what it tells the processes."""
    from accelerate.utils import DeepSpeedPlugin
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    shipped = yaml.safe_load((ENGINES / "zero3.yaml").read_text())
    arguments = launcher_arguments("zero3")
    assert arguments.use_deepspeed
    for name, value in shipped["deepspeed_config"].items():
        assert getattr(arguments, name) == value, name
    arguments.deepspeed_fields_from_accelerate_config = ",".join(shipped["deepspeed_config"])
    _, environment = prepare_deepspeed_cmd_env(arguments)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert sharded()
    with pytest.raises(
        ValueError, match=r"ZeRO-3 cannot train a pair.*fsdp2\.yaml"
    ):  # until the loss gathers the heads
        check_launch(recipe)
    plugin = DeepSpeedPlugin()
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    assert zero["stage"] == 3
    assert zero["stage3_gather_16bit_weights_on_model_save"] is True
    assert {zero[f"offload_{what}"]["device"] for what in ("optimizer", "param")} == {"none"}
    assert plugin.zero3_init_flag is False
    assert config["train_batch_size"] == "auto"
    assert config["gradient_clipping"] == "auto"
    assert "bf16" not in config
    assert "optimizer" not in config


def test_layers_of_both_models_are_gathered_by_themselves_and_gradients_added_in_float32(tmp_path):
    trainer = make_trainer(tmp_path)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    for bf16, gathered, added in ((False, None, None), (True, torch.bfloat16, torch.float32)):
        cut_by_layers(plugin, trainer.step, bf16=bf16)
        assert plugin.transformer_cls_names_to_wrap == ["Qwen2DecoderLayer", "SiglipEncoderLayer"]
        policy = plugin.mixed_precision_policy
        assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (gathered, added, None)
        plugin.set_auto_wrap_policy(trainer.step)  # what accelerate does with it; anew in the next round
        assert {kind.__name__ for kind in plugin.auto_wrap_policy.keywords["transformer_layer_cls"]} == {
            "Qwen2DecoderLayer",
            "SiglipEncoderLayer",
        }


def test_what_is_put_into_a_plain_module_is_there():
    model, other = tiny_llava(seed=1), tiny_llava(seed=2)
    put(other.state_dict(), model)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        put({}, model)
