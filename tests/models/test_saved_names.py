"""A model that was put together is saved under the names that the hub has, which all engines read."""

import json
import re

import pytest
from real_checkpoints import REAL
from safetensors import safe_open
from tiny_families import BUILDS, tiny
from transformers import AutoModelForImageTextToText

from switchkd.export.engines import HUB_LAYERS
from switchkd.models.fill import fill

#: Build → the public checkpoint whose names are known whole.
PUBLIC = {"llava-clip-llama": "llava-1.5-7b-hf", "qwen2_5_vl": "qwen2.5-vl-7b-instruct"}


def names(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def without_numbers(names):
    return {re.sub(r"\.\d+\.", ".N.", name) for name in names}


@pytest.mark.parametrize("build", BUILDS)
def test_tensors_have_the_names_of_the_hub(build, tmp_path):
    model = tiny(build, depth=2)
    fill(type(model), model.config, dict(model.state_dict())).save_pretrained(tmp_path / "filled")
    saved = names(tmp_path / "filled")
    assert {name.split(".0.")[0] for name in saved if ".0." in name} >= set(HUB_LAYERS[model.config.model_type])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "filled")
    assert all(value.equal(loaded.state_dict()[name]) for name, value in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "plain")
    assert names(tmp_path / "plain") == saved
    if REAL is not None and build in PUBLIC:
        index = json.loads((REAL / "checkpoints" / PUBLIC[build] / "model.safetensors.index.json").read_text())
        # old files kept rotary frequencies and numbers of positions
        public = {name for name in index["weight_map"] if "inv_freq" not in name and "position_ids" not in name}
        assert without_numbers(saved) == without_numbers(public)
