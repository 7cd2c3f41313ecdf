"""How a pair fits, from configs and processors; and runs of pairs that do not, from the recipe to the finished student."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from run_files import write_model, write_run
from safetensors.torch import load_file
from tiny import tiny_processor
from tiny_families import BUILDS
from tiny_processors import PROCESSORS
from tiny_tokenizers import other_processor, sentencepiece_tokenizer, wordpiece_tokenizer
from transformers import AutoModelForImageTextToText

from switchkd import distill
from switchkd.batch import TEACHER
from switchkd.data.template_choice import choose_format
from switchkd.methods import SFT
from switchkd.models.families.chat_blocks import CHATML
from switchkd.models.families.llava import VICUNA
from switchkd.pairing.bridge import Bridge
from switchkd.pairing.compatibility import Difference
from switchkd.pairing.pair_report import PairReport, compare_checkpoints, compare_models
from switchkd.recipe.schema import load_recipe
from switchkd.train import checkpoint
from switchkd.train.stage import open_run, open_stage


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The teacher, and a function that writes a student."""
    folder = tmp_path_factory.mktemp("pairs")
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)

    def student(name, **sizes):
        if not (folder / name).exists():
            write_model(folder / name, seed=2, **sizes)
        return folder / name, folder / "teacher"

    return student


def same(chat_template=CHATML, **sizes):
    """A processor with the teacher's tokenizer."""
    return other_processor(tiny_processor().tokenizer, chat_template=chat_template, **sizes)


#: The rows of the table in docs/families.md: a student → what differs from its teacher, how, and whether it needs a bridge.
PAIRS = {
    "deeper language model": ({"depth": 4}, {}, False),
    "narrower vision encoder": ({"width": 16}, {"feature width": "bridge"}, True),
    "finer patches": (
        {"processor": same(image_size=48, patch_size=8), "image_size": 48},
        {
            "visual tokens per image": "bridge",
            "grid side": "bridge",
            "image size in pixels": "own inputs",
            "image processor's size": "own inputs",
        },
        True,
    ),
    "more padding rows": ({"vocabulary": 384}, {"vocabulary rows": "shared ids"}, False),
    "another chat template": (
        {"processor": same(VICUNA, image_size=32, patch_size=8)},
        {"chat template": "own inputs"},
        False,
    ),
    "another tokenizer": (
        {"processor": other_processor(sentencepiece_tokenizer(), image_size=32, patch_size=8), "vocabulary": 448},
        {
            "vocabulary rows": "shared ids",
            "image token id": "fits",
            "tokenizer": "aligned",
            "chat template": "own inputs",
        },
        False,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_is_found_without_weights(written, name):
    sizes, expected, bridge = PAIRS[name]
    student, teacher = written(name, **sizes)
    report = compare_checkpoints(student, teacher)
    verdicts = {difference.what: difference.verdict for difference in report.differences}
    assert {difference.what: difference.verdict for difference in report.mismatches} == {
        what: verdict for what, verdict in expected.items() if verdict != "fits"
    }
    assert all(verdicts[what] == verdict for what, verdict in expected.items())
    assert report.needs_bridge == bridge


def test_padding_rows_are_spoken_of_where_the_tokenizer_is_one(written):
    details = {}
    for name in ("more padding rows", "another tokenizer"):
        differences = compare_checkpoints(*written(name, **PAIRS[name][0])).differences
        (details[name],) = [one.detail for one in differences if one.what == "vocabulary rows"]
    real = len(tiny_processor().tokenizer)
    assert details == {
        "more padding rows": f"{real} real ids; padding rows are never compared",
        "another tokenizer": "",
    }


def test_every_setting_of_the_image_processors_that_changes_pixels_is_reported(written):
    student, teacher = written("other pixels", processor=same(image_size=32, patch_size=8))
    file = student / "processor_config.json"
    content = json.loads(file.read_text())
    content["image_processor"] |= {
        "image_mean": [0.1] * 3,
        "image_std": [0.2] * 3,
        "data_format": "channels_last",
        "device": "cpu",
    }
    file.write_text(json.dumps(content))
    report = compare_checkpoints(student, teacher)
    settings = [one for one in report.mismatches if one.what.startswith("image processor")]
    assert [one.what for one in settings] == ["image processor's image_mean", "image processor's image_std"]
    assert {one.verdict for one in settings} == {"own inputs"}


def test_settings_of_processors_are_own_inputs_and_the_grids_they_make_a_bridge():
    """Qwen-VL's grid follows the image's size, so the processor decides on it; its mean does not."""
    config = BUILDS["qwen2_5_vl"].config(16, 2)
    config.text_config.vocab_size = 448

    def against_usual(**settings):
        student, teacher = PROCESSORS["qwen2_5_vl"](), PROCESSORS["qwen2_5_vl"]()
        for name, value in settings.items():
            setattr(student.image_processor, name, value)
        config.image_token_id = choose_format(teacher).image_token_id
        return {one.what: one.verdict for one in compare_models((config, student), (config, teacher)).mismatches}

    mean = {"image processor's image_mean": "own inputs"}
    assert against_usual(image_mean=[0.1] * 3) == mean
    size = {"image processor's size": "own inputs", "grid of an image": "bridge"}
    assert against_usual(image_mean=[0.1] * 3, size={"shortest_edge": 64, "longest_edge": 512}) == mean | size


def test_a_recipe_says_what_is_not_a_default():
    plain = "teacher: {path: t}\nstudent: {path: s}\n"
    bridged = Difference("feature width", 48, 32, "bridge")
    tiles = Difference("images", "whole", "cut into tiles", "refused for the switch")
    assert PairReport([bridged], 3).recipe_lines("s", "t") == plain
    assert PairReport([bridged, tiles], 3).recipe_lines("s", "t") == plain + "method: {name: switch_kd, switch: 0}\n"


def test_tokenizers_that_share_nothing_readable_are_refused(written):
    student, teacher = written("wordpiece", processor=other_processor(wordpiece_tokenizer()), vocabulary=448)
    file = student / "tokenizer.json"
    content = json.loads(file.read_text())
    content["decoder"] = None
    file.write_text(json.dumps(content))
    differences = compare_checkpoints(student, teacher).differences
    (refused,) = [one for one in differences if one.verdict == "refused"]
    assert str(refused).startswith("tokenizer: ")
    assert "how it marks the space before a word is not known" in refused.detail


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A run whose student differs from its teacher in width, patches, resolution, template and tokenizer."""
    folder = tmp_path_factory.mktemp("mismatch")
    write_run(folder)
    shutil.rmtree(folder / "student")
    processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
    write_model(folder / "student", seed=2, processor=processor, width=48, vocabulary=448, image_size=48)
    return folder


@pytest.fixture
def fresh(files, tmp_path):
    shutil.copytree(files, tmp_path / "here")
    here = tmp_path / "here"
    (here / "recipe.yaml").write_text((files / "recipe.yaml").read_text().replace(str(files), str(here)))
    return here


FLAGS = ["--pair.min_aligned", "0.3", "--pair.fit_rows", "6"]


@pytest.mark.long
def test_a_pair_that_differs_in_everything_is_distilled(fresh, caplog):
    caplog.set_level(logging.INFO, "switchkd")
    recipe = load_recipe(fresh / "recipe.yaml", FLAGS)
    student = distill(recipe).folder
    # plain code loads it, and nothing of bridge and teacher is in it
    AutoModelForImageTextToText.from_pretrained(student)
    assert {file.name for file in student.iterdir()} == {file.name for file in (fresh / "student").iterdir()} | {
        "README.md",
        "manifest.json",
        "preprocessor_config.json",
    }
    saved = load_file(student / "model.safetensors")
    assert saved.keys() == load_file(fresh / "student" / "model.safetensors").keys()
    stage = fresh / "run" / "1-train"
    bridge = load_file(stage / "checkpoint-6" / "bridge.safetensors")
    assert bridge["translate.weight"].shape == (32, 48)
    assert not torch.equal(
        bridge["translate.weight"], load_file(stage / "checkpoint-4" / "bridge.safetensors")["translate.weight"]
    )
    # every mismatch is in the log, the metrics and the model card
    for said in (
        "feature width: 48 and 32",
        "tokenizer: ",
        "are compared with the teacher's",
        "bridge fitted on 6 rows",
    ):
        assert said in caplog.text
    card = (student / "README.md").read_text()
    assert "- feature width: 48 and 32 (translated by a linear layer): bridge" in card
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    (first, *_) = [line for line in metrics if "loss" in line]
    assert 0.3 < first["aligned"] < 0.9
    assert 0 < first["dropped_mass"] < 1
    assert first["switch"] > 0
    # resumed from the middle it ends at the same weights, bridge included
    shutil.rmtree(stage / "checkpoint-6")
    shutil.rmtree(student)
    distill(recipe)
    again = load_file(student / "model.safetensors")
    assert all(torch.equal(saved[name], again[name]) for name in saved)
    resumed = load_file(stage / "checkpoint-6" / "bridge.safetensors")
    assert all(torch.equal(bridge[name], resumed[name]) for name in bridge)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pair.min_aligned", "0.9"], r"only \d\d\.\d% of the student's answer tokens .* asks for 90\.0%"),
        (["--pair.bridge", "none"], r"differ in feature width: 48 and 32 .*`pair: \{bridge: auto\}`"),
    ],
)
def test_what_the_recipe_does_not_allow_is_refused(fresh, flags, message):
    with pytest.raises(ValueError, match=message):
        distill(load_recipe(fresh / "recipe.yaml", flags))


def test_a_checkpoint_with_a_bridge_belongs_to_a_pair_with_one(tmp_path):
    checkpoint.save_auxiliary({"bridge": Bridge(3, 4)}, tmp_path)
    with pytest.raises(ValueError, match=r"was saved with bridge\.safetensors, and the recipe's pair has none"):
        checkpoint.load_auxiliary({"bridge": None}, tmp_path)
    (tmp_path / "bridge.safetensors").unlink()
    checkpoint.save_auxiliary({"bridge": None}, tmp_path)
    with pytest.raises(ValueError, match=r"was saved without bridge\.safetensors, and the recipe's pair has one"):
        checkpoint.load_auxiliary({"bridge": Bridge(3, 4)}, tmp_path)


def test_without_the_switch_no_bridge_is_made_and_sft_reads_its_own_batch_only(fresh):
    recipe = load_recipe(fresh / "recipe.yaml", [*FLAGS, "--method.switch", "0", "--pair.bridge", "none"])
    with TemporaryDirectory() as scratch:
        run = open_run(recipe)
        opened = open_stage(run, recipe.resolved_stages()[0], Path(scratch))
        assert opened.pair.bridge is None
        assert TEACHER in opened.collator([opened.rows[0]]).readers
        assert run.collator(replace(opened.stage, method=SFT(), teacher=None))([opened.rows[0]]).readers == {}


def test_a_bridge_can_be_asked_for_where_shapes_agree(tmp_path):
    recipe = load_recipe(write_run(tmp_path), ["--pair.bridge", "always", "--pair.fit_rows", "4"])
    run = open_run(recipe)
    opened = open_stage(run, recipe.resolved_stages()[0], tmp_path / "stage")
    assert opened.teacher.report.mismatches == []
    assert opened.pair.bridge.fitted
    batch = opened.collator([opened.rows[0]])
    assert batch.readers[TEACHER] is batch.student
    bridged = opened.pair(batch).compared[TEACHER].switch.hidden
    opened.pair.bridge = None
    assert not torch.equal(bridged, opened.pair(batch).compared[TEACHER].switch.hidden)
