"""Trackers and optional packages are looked for when a recipe is built, and not by the step that wants them."""

import pytest
import yaml
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from switchkd import cli
from switchkd.recipe import packages
from switchkd.recipe.parsing import RecipeError
from switchkd.recipe.schema import build_recipe
from switchkd.study.plan import Study, cells

TREE = {
    "student": {"path": "student"},
    "teacher": {"path": "teacher"},
    "method": {"name": "kd"},
    "data": {"train": "rows.json"},
    "evaluate": {"data": "rows.json"},
}
MISSING = [
    (["--train.report_to", "wandb"], r"train\.report_to names wandb, which is not installed: pip install wandb"),
    (["--teacher.quantization", "8bit"], r"teacher\.quantization needs bitsandbytes, which is not installed"),
    (["--student.attn_implementation", "flash_attention_2"], r"student\.attn_implementation .* pip install flash-attn"),
    (["--train.kernels", "liger"], r"train\.kernels: liger .* pip install liger-kernel"),
]


def test_the_trackers_are_those_of_transformers():
    assert packages.TRACKERS.keys() == INTEGRATION_TO_CALLBACK.keys()


def test_a_tracker_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"report_to names 'wandbb'; did you mean `wandb`\?"):
        build_recipe(TREE | {"train": {"output": str(tmp_path), "report_to": ["wandbb"]}}, "r.yaml")


@pytest.mark.parametrize(("flags", "message"), MISSING)
def test_a_package_that_is_missing_is_named_before_anything_is_loaded(tmp_path, flags, message, monkeypatch, capsys):
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name != "tensorboard" else True)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(TREE | {"train": {"output": str(tmp_path / "run")}}))
    for more in ([], ["--dry-run"]):
        assert cli.main(["train", str(recipe), *more, *flags]) == 2
        said = capsys.readouterr().err
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(said)
    assert not (tmp_path / "run").exists()
    study = Study(str(recipe), str(tmp_path / "study"), {"KD": {"method": {"name": "kd"}}}, "KD", seeds=(0,))
    with pytest.raises(RecipeError, match=message):
        cells(study, flags)
