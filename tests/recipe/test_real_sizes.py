"""Recipes of public models in their real sizes: configs alone, no weights. The numbers stand in docs/recipes.md."""

from pathlib import Path

import pytest
from published_configs import PUBLISHED
from real_checkpoints import REAL
from recipe_table import HEAD, last_stage, pairs, row
from transformers import AutoConfig

from switchkd.models import Pathway
from switchkd.models.families import family_of
from switchkd.recipe.schema import Teacher
from switchkd.train.memory import _build

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
PAIRS = pairs()
#: Patches that an encoder sees of a photograph of 640 × 480 pixels, by its `model_type` and the patches of a tile's side.
PATCHES = {
    "qwen2_5_vl": 34 * 46,
    "qwen3_vl": 30 * 40,
    "smolvlm32": 13 * 32**2,
    "smolvlm27": 13 * 27**2,
    "internvl32": 13 * 32**2,
    "llava_onevision27": 5 * 27**2,
    "gemma364": 64**2,
    "llava27": 27**2,
}


def without_weights(name) -> Pathway:
    return _build(PUBLISHED[name][0](), Teacher(name))


def count(pathway, part=None) -> int:
    tensors = pathway.model.parameters() if part is None else pathway.part_parameters(part).values()
    return sum({id(tensor): tensor.numel() for tensor in tensors}.values())  # a tied head is one with the embeddings


def test_there_are_ten_pairs_and_the_page_has_them():
    page = PAGE.read_text()
    assert len(PAIRS) == 10
    assert "| " + " | ".join(HEAD) + " |" in page
    assert [name for name in PAIRS if f"\n| `{name}` | " not in page] == []


@pytest.mark.parametrize("name", [name for name, (_, billions) in PUBLISHED.items() if billions])
def test_a_config_has_the_published_number_of_parameters(name):
    assert count(without_weights(name)) / 1e9 == pytest.approx(PUBLISHED[name][1], rel=0.02)


@pytest.mark.skipif(REAL is None, reason="public files are elsewhere: SWITCHKD_REAL names no folder")
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("qwen2.5-vl-7b-instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("smolvlm2-500m-video-instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
        ("gemma-3-4b-it", "google/gemma-3-4b-it"),
    ],
)
def test_a_config_written_from_sizes_is_the_real_one(folder, name):
    """Every tensor of the model has the name and the shape that the published config gives it."""
    real = _build(AutoConfig.from_pretrained(REAL / "checkpoints" / folder), Teacher(name))
    shapes = [
        {key: tensor.shape for key, tensor in one.model.state_dict().items()} for one in (real, without_weights(name))
    ]
    assert shapes[0] == shapes[1]


def patches(config) -> int:
    sizes = family_of(config).sizes()
    side = sizes.get("grid_side", "")
    if config.model_type == "internvl":
        side *= 2  # two by two become one before the projector
    return PATCHES[f"{config.model_type}{side}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_a_step_of_a_pair_takes_what_the_page_says_and_a_hand_can_count(name):
    recipe = PAIRS[name]
    (stage,) = recipe.resolved_stages()[-1:]
    memory = last_stage(recipe)
    assert row(name, recipe, memory) in PAGE.read_text().splitlines()
    student, teacher = (without_weights(model.path) for model in (recipe.student, recipe.teacher))
    learning = sum(count(student, part) for part in stage.train)
    frozen = count(student) - learning
    # bfloat16 is two bytes; what learns is float32, and AdamW has two moments of it. Layers that feed nothing are frozen
    per_frozen = 4 if recipe.student.dtype == "float32" else 2
    assert memory.weights == pytest.approx(2 * count(teacher) + 4 * learning + per_frozen * frozen, rel=0.02)
    assert memory.gradients == pytest.approx(4 * learning, rel=0.06)
    assert memory.optimizer == 2 * memory.gradients
    # two operations for a parameter and token forward, two backward for activations, two for weights; checkpointing goes forward again
    rows, tokens = stage.per_device_train_batch_size, recipe.data.max_length
    again = 2 if recipe.train.gradient_checkpointing else 0
    switch = 4 + (2 if recipe.train.switch_checkpointing else 0) if "switch" in stage.method.needs else 0
    by_hand = rows * tokens * ((6 + again) * spoken(student) + (2 + switch) * spoken(teacher))
    seen = (6 + again if "vision" in stage.train else 2) * count(student, "vision") * patches(student.model.config)
    by_hand += rows * (seen + 2 * count(teacher, "vision") * patches(teacher.model.config))
    assert 1 < memory.flops / by_hand < 1.3


def spoken(pathway) -> int:
    """Parameters that a token is multiplied with: the language model's and its head's, whose rows are looked up besides."""
    tied = pathway.model.config.tie_word_embeddings
    return count(pathway, "language") - (0 if tied else pathway.head.weight.numel())
