"""Maps of attention are what plain Hugging Face code finds when it is asked for attentions."""

import pytest
import torch
from tiny_families import batch_for, tiny
from tiny_models import BUILDS, IMAGE_TOKEN, tiny_batch, tiny_llava

from switchkd.evaluate.attention import attention_maps
from switchkd.models import Pathway
from switchkd.types import IGNORE_INDEX


def slow_maps(model, batch, tokens, side):
    """Loop by loop, from the attentions that transformers gives out."""
    model.set_attn_implementation({"text_config": "eager"})
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
    maps = []
    for row, ids in enumerate(batch["input_ids"]):
        queries = [t - 1 for t, label in enumerate(batch["labels"][row].tolist()) if t and label != IGNORE_INDEX]
        places = [t for t, token in enumerate(ids.tolist()) if token == IMAGE_TOKEN]
        for begin in range(0, len(places), tokens):
            flat = []
            for key in places[begin : begin + tokens]:
                paid = [layer[row, head, q, key] for layer in attentions for head in range(2) for q in queries]
                flat.append(sum(map(float, paid)) / len(paid))
            maps.append(torch.tensor(flat).view(side, side))
    return maps


@pytest.mark.parametrize(("vision", "language"), BUILDS)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_maps_are_the_attentions_of_the_plain_model(vision, language, padding_side):
    model, batch = tiny_llava(vision, language), tiny_batch(padding_side=padding_side)
    maps = attention_maps(Pathway(model), batch)
    assert [tuple(m.shape) for m in maps] == [(2, 2)] * 3
    torch.testing.assert_close(maps, slow_maps(model, batch, tokens=4, side=2), rtol=0, atol=1e-6)
    assert all(0 < m.sum() < 1 and (m > 0).all() for m in maps)


@pytest.mark.parametrize(("build", "tokens", "side"), [("paligemma2", 4, 2), ("gemma3", 4, 2)])
def test_maps_of_other_families_whose_images_are_squares_of_tokens(build, tokens, side):
    model, batch = tiny(build), batch_for(build)
    maps = attention_maps(Pathway(model), batch)
    torch.testing.assert_close(maps, slow_maps(model, batch, tokens, side), rtol=0, atol=1e-6)


def test_attention_without_preference_is_spread_over_all_that_was_read():
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
        torch.nn.init.zeros_(layer.self_attn.q_proj.bias)
    batch = tiny_batch(images=(1,))
    (map_,) = attention_maps(Pathway(model), batch)
    # two words, four visual tokens, a word, three of a question: the three answer tokens are predicted at 9 to 11, the other two at 15, 16
    expected = (1 / 10 + 1 / 11 + 1 / 12 + 1 / 16 + 1 / 17) / 5
    torch.testing.assert_close(map_, torch.full((2, 2), expected))


def test_the_switch_attends_as_the_teacher_where_they_see_the_same():
    student, teacher, batch = Pathway(tiny_llava(seed=1)), Pathway(tiny_llava(hidden=40, depth=3)), tiny_batch()
    own = attention_maps(teacher, batch)
    switch = attention_maps(teacher, batch, student.see(batch))
    assert not any(torch.equal(a, b) for a, b in zip(own, switch, strict=True))
    student.part("vision")[0].load_state_dict(teacher.part("vision")[0].state_dict())
    switch = attention_maps(teacher, batch, student.see(batch))
    assert all(torch.equal(a, b) for a, b in zip(own, switch, strict=True))


def test_the_model_is_left_as_it_was():
    pathway, batch = Pathway(tiny_llava()).train(), tiny_batch()
    pathway.model.config.text_config.attention_dropout = 0.5
    for layer in pathway.model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    first, second = attention_maps(pathway, batch), attention_maps(pathway, batch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert pathway.model.training
    assert pathway.model.config.text_config._attn_implementation == "sdpa"
    assert not any(layer.self_attn._forward_hooks for layer in pathway.model.model.language_model.layers)


def test_a_batch_without_pictures_has_no_maps():
    assert attention_maps(Pathway(tiny_llava()), tiny_batch(images=(0, 0))) == []


@pytest.mark.parametrize("build", ["qwen2_vl", "idefics3", "llava_next-llama"])
def test_families_without_one_grid_are_refused(build):
    with pytest.raises(
        ValueError, match=r"has no fixed grid of visual tokens per image.*\(LLaVA, PaliGemma, Gemma 3\)"
    ):
        attention_maps(Pathway(tiny(build)), batch_for(build))


def test_a_class_token_is_refused():
    model = tiny_llava("clip")
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="5 visual tokens per image make no square: the class token is among them"):
        attention_maps(Pathway(model), tiny_batch())


def test_rows_that_have_no_map_are_named():
    pathway, batch = Pathway(tiny_llava()), tiny_batch()
    batch["labels"][1] = IGNORE_INDEX
    with pytest.raises(ValueError, match="row 1 has a picture but no answer"):
        attention_maps(pathway, batch)
    batch["input_ids"][0, 2] = 7
    with pytest.raises(ValueError, match="row 0 has 3 visual tokens, and a picture of llava has 4"):
        attention_maps(pathway, batch)
