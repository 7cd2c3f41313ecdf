"""Maps of attention are what plain Hugging Face code finds when it is asked for attentions."""

import pytest
import torch
from tiny_families import inputs_for, tiny
from tiny_models import BUILDS, IMAGE_TOKEN, make_inputs, tiny_inputs, tiny_llava

from switchkd.evaluate.attention import attention_maps
from switchkd.models import Pathway


def slow_maps(model, inputs, tokens, side):
    """Loop by loop, from the attentions that transformers gives out."""
    model.set_attn_implementation({"text_config": "eager"})
    mask, images = inputs.is_text().long(), inputs.images or {}
    with torch.no_grad():
        attentions = model(
            input_ids=inputs.tokens, attention_mask=mask, **images, **inputs.types, output_attentions=True
        ).attentions
    maps = []
    for row, ids in enumerate(inputs.tokens):
        answers = [flat for flat, of in zip(inputs.predicts, inputs.sample, strict=True) if of == row]
        queries = [int(flat) % inputs.tokens.shape[1] for flat in answers]
        places = [t for t, token in enumerate(ids.tolist()) if token == IMAGE_TOKEN]
        for begin in range(0, len(places), tokens):
            flat = []
            for key in places[begin : begin + tokens]:
                paid = [layer[row, head, q, key] for layer in attentions for head in range(2) for q in queries]
                flat.append(sum(map(float, paid)) / len(paid))
            maps.append(torch.tensor(flat).view(side, side))
    return maps


@pytest.mark.parametrize(("vision", "language"), BUILDS)
def test_maps_are_the_attentions_of_the_plain_model(vision, language):
    model, inputs = tiny_llava(vision, language), tiny_inputs()
    maps = attention_maps(Pathway(model), inputs)
    assert [tuple(m.shape) for m in maps] == [(2, 2)] * 3
    torch.testing.assert_close(maps, slow_maps(model, inputs, tokens=4, side=2), rtol=0, atol=1e-6)
    assert all(0 < m.sum() < 1 and (m > 0).all() for m in maps)


@pytest.mark.parametrize(("build", "tokens", "side"), [("paligemma2", 4, 2), ("gemma3", 4, 2)])
def test_maps_of_other_families_whose_images_are_squares_of_tokens(build, tokens, side):
    model, inputs = tiny(build), inputs_for(build)
    maps = attention_maps(Pathway(model), inputs)
    torch.testing.assert_close(maps, slow_maps(model, inputs, tokens, side), rtol=0, atol=1e-6)


def test_attention_without_preference_is_spread_over_all_that_was_read():
    model = tiny_llava()
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.q_proj.weight)
        torch.nn.init.zeros_(layer.self_attn.q_proj.bias)
    (map_,) = attention_maps(Pathway(model), tiny_inputs(images=(1,)))
    # two words, four visual tokens, a word, three of a question: the three answer tokens are predicted at 9 to 11, the other two at 15, 16
    expected = (1 / 10 + 1 / 11 + 1 / 12 + 1 / 16 + 1 / 17) / 5
    torch.testing.assert_close(map_, torch.full((2, 2), expected))


def test_the_switch_attends_as_the_teacher_where_they_see_the_same():
    student, teacher, inputs = Pathway(tiny_llava(seed=1)), Pathway(tiny_llava(hidden=40, depth=3)), tiny_inputs()
    own = attention_maps(teacher, inputs)
    switch = attention_maps(teacher, inputs, student.see(inputs))
    assert not any(torch.allclose(a, b) for a, b in zip(own, switch, strict=True))
    student.part("vision")[0].load_state_dict(teacher.part("vision")[0].state_dict())
    switch = attention_maps(teacher, inputs, student.see(inputs))
    torch.testing.assert_close(switch, own, rtol=0, atol=1e-6)


def test_the_model_is_left_as_it_was():
    pathway, inputs = Pathway(tiny_llava()).train(), tiny_inputs()
    pathway.model.config.text_config.attention_dropout = 0.5
    for layer in pathway.model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.5
    torch.testing.assert_close(attention_maps(pathway, inputs), attention_maps(pathway, inputs), rtol=0, atol=1e-6)
    assert pathway.model.training
    assert pathway.model.config.text_config._attn_implementation == "sdpa"
    assert not any(layer.self_attn._forward_hooks for layer in pathway.model.model.language_model.layers)


def test_a_batch_without_pictures_has_no_maps():
    assert attention_maps(Pathway(tiny_llava()), tiny_inputs(images=(0, 0))) == []


@pytest.mark.parametrize("build", ["qwen2_vl", "idefics3", "llava_next-llama"])
def test_families_without_one_grid_are_refused(build):
    with pytest.raises(
        ValueError, match=r"has no fixed grid of visual tokens per image.*\(LLaVA, PaliGemma, Gemma 3\)"
    ):
        attention_maps(Pathway(tiny(build)), inputs_for(build))


def test_a_class_token_is_refused():
    model = tiny_llava("clip")
    model.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="5 visual tokens per image make no square: the class token is among them"):
        attention_maps(Pathway(model), tiny_inputs())


def test_samples_that_have_no_map_are_named():
    pathway = Pathway(tiny_llava())
    pictures = {"pixel_values": torch.randn(2, 3, 16, 16)}
    asked, answered = [IMAGE_TOKEN] * 4 + [7, 8], [IMAGE_TOKEN] * 4 + [7, 8, 9]
    with pytest.raises(ValueError, match="sample 1 has a picture but no answer"):
        attention_maps(pathway, make_inputs([(answered, [6]), (asked, [])], pictures))
    answered[2] = 7
    with pytest.raises(ValueError, match="sample 0 has 3 visual tokens, and a picture of llava has 4"):
        attention_maps(pathway, make_inputs([(answered, [6]), (answered, [6])], pictures))
