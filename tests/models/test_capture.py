"""What is captured inside a model is what plain Hugging Face code has there, sample by sample, in every family."""

import pytest
import torch
from pairs import PARTS
from tiny_families import BUILDS, IMAGE_TOKEN, VOCABULARY, inputs_for, tiny
from tiny_models import read_alike, read_apart, tiny_batch, tiny_inputs, tiny_llava

from switchkd.batch import TEACHER
from switchkd.models import Pathway
from switchkd.models.capture import Attention, Hidden, Projected, Switched, Vision, capture, of_samples
from switchkd.models.families.family import share
from switchkd.pairing import Pair
from switchkd.signals import Activations

every_family = pytest.mark.parametrize("name", BUILDS)
WHERE = ("visual", "text", "answers")
#: What the methods of the project look at.
SITES = frozenset({Vision(), Projected(), Hidden(at="visual"), Hidden(at="text"), Attention(0, "text", "visual")})


def captured(pathway, inputs, sites=SITES):
    seen = pathway.see(inputs)
    with capture(pathway, seen, inputs, frozenset(sites)) as noted:
        pathway.say(seen, inputs)
    return of_samples(noted, frozenset(sites))


def make_pair(sites=SITES, vocabulary=VOCABULARY - 6):
    """Models of different width and depth that need nothing but what is inside both."""
    student, teacher = Pathway(tiny_llava(seed=2)), Pathway(tiny_llava(hidden=40, depth=3, seed=1))
    student.train_only(PARTS)
    return Pair(student, teacher, needs=frozenset({"student", "teacher", *sites}), vocabulary=vocabulary)


def positions(inputs, sample):
    """Visual tokens, text that is followed by text, and what predicts answers, counted by hand."""
    ids = inputs.tokens[sample, : inputs.lengths[sample]].tolist()
    width = inputs.tokens.shape[1]
    return {
        "visual": [i for i, token in enumerate(ids) if token == IMAGE_TOKEN],
        "text": [i for i in range(len(ids) - 1) if IMAGE_TOKEN not in ids[i : i + 2]],
        "answers": [place % width for place in inputs.predicts.tolist() if place // width == sample],
    }


def plain(model, inputs):
    """The plain model's outputs, with its hidden states and attention weights."""
    given = {"input_ids": inputs.tokens, "attention_mask": inputs.is_text().long(), **inputs.images, **inputs.types}
    return model(**given, output_hidden_states=True, output_attentions=True)


#: Depth → the place in `hidden_states` of a model with three layers, the first of which is the embedded tokens.
HIDDEN = {0.0: 1, 0.3: 1, 0.5: 2, 2 / 3: 2, 1.0: 3}
#: Depth → layer of three.
LAYERS = {0.0: 0, 0.5: 1, 1.0: 2}


@every_family
def test_hidden_states_of_any_layer_are_those_of_the_plain_model(name):
    pathway, inputs = Pathway(tiny(name).double()), inputs_for(name)
    activations = captured(pathway, inputs, {Hidden(depth, at) for depth in HIDDEN for at in WHERE})
    states = plain(pathway.model, inputs).hidden_states
    for sample in range(len(inputs.lengths)):
        expected_positions = positions(inputs, sample)
        assert (len(expected_positions["visual"]) > 0) == (sample < 2)
        assert len(expected_positions["text"]) > 10
        assert len(expected_positions["answers"]) == 3 + sample + 2
        for (depth, place), at in ((pair, at) for pair in HIDDEN.items() for at in WHERE):
            expected = states[place][sample][expected_positions[at]]
            torch.testing.assert_close(activations[Hidden(depth, at)][sample], expected, rtol=0, atol=1e-10)


@every_family
def test_a_part_of_the_language_model_makes_what_the_whole_makes_there(name):
    pathway, inputs = Pathway(tiny(name).double()), inputs_for(name)
    sites = frozenset(Switched(layers) for layers in range(4))
    whole, seen = captured(pathway, inputs, sites), pathway.see(inputs)
    for site in sites:
        with pathway.first_layers(site.layers), capture(pathway, seen, inputs, frozenset({site})) as noted:
            pathway.say(seen, inputs)
        assert all(map(torch.equal, site.of_samples(noted), whole[site])), site
    for sample in range(len(inputs.lengths)):
        where = positions(inputs, sample)
        assert len(whole[Switched(0)][sample]) == len(where["visual"])
        assert len(whole[Switched(1)][sample]) == len(where["visual"]) + len(where["answers"])


@every_family
def test_attention_of_any_layer_is_that_of_the_plain_model(name):
    """In float32: eager attention takes its softmax in float32, where the float64 mask of padding beyond a window is all −inf, and NaN."""
    pathway, inputs = Pathway(tiny(name)), inputs_for(name)
    pathway.show_attention(True)
    from_to = [("text", "visual"), ("answers", "visual"), ("answers", "text"), ("visual", "visual")]
    activations = captured(pathway, inputs, {Attention(depth, *route) for depth in LAYERS for route in from_to})
    weights = plain(pathway.model, inputs).attentions
    assert len(weights) == len(LAYERS)
    for sample in range(len(inputs.lengths)):
        where = positions(inputs, sample)
        for depth, layer in LAYERS.items():
            for of, to in from_to:
                expected = weights[layer][sample][:, where[of]][:, :, where[to]]
                weights_here = activations[Attention(depth, of, to)][sample]
                torch.testing.assert_close(weights_here, expected, rtol=0, atol=1e-5)
    assert (activations[Attention(0.0, "text", "visual")][0].sum() > 1).item()


@every_family
def test_features_go_to_the_samples_of_their_images(name):
    pathway, inputs = Pathway(tiny(name)), inputs_for(name)
    sites = {Vision(), Projected()}
    own = captured(pathway, inputs, sites)
    seen = pathway.see(inputs)
    assert torch.equal(torch.cat(own[Vision()]), seen.reshape(-1, seen.shape[-1]))
    given = {key: value for key, value in inputs.images.items() if key in pathway.family.image_inputs}
    projected = pathway.model.model.get_image_features(**given, return_dict=True).pooler_output
    parts = projected if isinstance(projected, (list, tuple)) else [projected]
    flat = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
    torch.testing.assert_close(torch.cat(own[Projected()]), flat, rtol=0, atol=1e-5)
    assert [len(part) for part in own[Projected()]] == (inputs.tokens == IMAGE_TOKEN).sum(dim=1).tolist()
    assert [len(part) > 0 for part in own[Vision()]] == [True, True, False]
    for image, sample in ((0, 0), (-1, 1)):  # the last sample with images is the second
        pixels = inputs.images["pixel_values"].clone()
        pixels[image] *= -1
        other = captured(pathway, inputs._replace(media={"image": {**inputs.images, "pixel_values": pixels}}), sites)
        for site in sites:
            differences = [
                (a - b).abs().max().item() if len(a) else 0 for a, b in zip(own[site], other[site], strict=True)
            ]
            assert [gap > 1e-4 for gap in differences] == [place == sample for place in range(3)], (site, differences)


def test_samples_without_images_have_no_visual_tokens():
    pathway = Pathway(tiny_llava())
    pathway.show_attention(True)
    activations = captured(pathway, tiny_inputs(images=(0, 0)))
    for site in (Vision(), Projected(), Hidden(at="visual")):
        assert [len(part) for part in activations[site]] == [0, 0]
    assert [part.shape[::2] for part in activations[Attention(0, "text", "visual")]] == [(2, 0), (2, 0)]


def test_what_no_method_asked_for_is_not_kept():
    pair = make_pair({Vision()})
    activations = pair(tiny_batch()).activations[TEACHER]
    assert activations.pairs(Vision())[0][0].shape == (4, 32)
    with pytest.raises(
        LookupError, match=r"activation Hidden\(.*'visual'\) was not captured: .* not name it in `needs`"
    ):
        activations.pairs(Hidden(at="visual"))
    for pathway in (pair.student, pair.teacher):
        hooks = [
            h for m in pathway.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
        ]
        assert not [
            hook for hook in hooks if hook.__module__.startswith("switchkd")
        ]  # transformers has some of its own
    assert not make_pair(())(tiny_batch()).activations


def test_only_eager_attention_keeps_its_weights():
    pathway, inputs = Pathway(tiny_llava()), tiny_inputs()
    message = r"layer 1 of the llava language model keeps no attention weights: only eager attention does"
    with pytest.raises(ValueError, match=message):
        captured(pathway, inputs, {Attention(1.0)})
    pathway.show_attention(True)
    assert captured(pathway, inputs, {Attention(1.0)})
    pathway.show_attention(False)
    with pytest.raises(ValueError, match=message):
        captured(pathway, inputs, {Attention(1.0)})


@pytest.mark.parametrize("site", [Hidden, Attention])
@pytest.mark.parametrize("depth", [-0.1, 1.5, 7])
def test_a_layer_is_a_depth(site, depth):
    with pytest.raises(ValueError, match=rf"layer={depth}.*layer is a depth, from 0 for the first to 1 for the last"):
        site(depth)


@pytest.mark.parametrize("layers", [3, 25, 28, 42, 46])
def test_the_depth_of_a_layer_is_that_layer(layers):
    """Whatever the rounding of layer / layers."""
    pathway = Pathway(tiny_llava())
    stack = [torch.nn.Identity() for _ in range(layers)]
    pathway.family.layers = lambda model: stack
    for layer in range(1, layers):
        (hook,) = Hidden(layer / layers).hook(pathway, lambda value: None)
        assert len(stack[layer - 1]._forward_hooks) == 1, layer
        hook.remove()


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_both_models_are_looked_at_in_one_forward_each(part):
    pair, calls = make_pair(), []
    getattr(pair, part).model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    activations = pair(tiny_batch()).activations[TEACHER]
    assert len(calls) == 1
    of_part = getattr(activations, part)
    assert of_part.keys() == SITES
    assert all(tensor.requires_grad == (part == "student") for site in SITES for tensor in of_part[site] if len(tensor))
    head = getattr(activations, f"{part}_head")
    assert head.rows == VOCABULARY - 6  # padding rows take no part
    assert torch.equal(head.weight, getattr(pair, part).head.weight[: VOCABULARY - 6])


def test_the_teacher_is_looked_at_while_it_reads_its_own_inputs():
    sites = {Vision(), Projected(), Hidden(0.5, "visual")}
    pair, student, teacher = make_pair(sites), tiny_inputs(), tiny_inputs(seed=1)
    activations = pair(read_apart(student, teacher, [(0, 0), (1, 1)])).activations[TEACHER]
    for pathway, inputs, both in (
        (pair.student, student, activations.student),
        (pair.teacher, teacher, activations.teacher),
    ):
        alone = captured(pathway, inputs, sites)
        for site in sites:
            for one, other in zip(both[site], alone[site], strict=True):
                assert torch.equal(one, other)


def test_heads_are_cut_to_the_ids_that_two_tokenizers_share():
    ids = ([3, 7, 90], [5, 4, 11])
    pair = make_pair({Hidden(at="visual")}, vocabulary=ids)
    activations = pair(read_alike(tiny_inputs())).activations[TEACHER]
    assert torch.equal(activations.student_head.weight, pair.student.head.weight[ids[0]])
    assert torch.equal(activations.teacher_head.weight, pair.teacher.head.weight[ids[1]])


def test_attention_under_gradient_checkpointing_has_the_same_gradients():
    gradients = []
    for saving in (False, True):
        pathway, inputs = Pathway(tiny_llava().double()), tiny_inputs()
        pathway.train_only(("language",))
        pathway.show_attention(True)
        pathway.train()
        if saving:
            pathway.model.activation_checkpointing_enable({"use_reentrant": False})
        sites = [Attention(0.0), Attention(1.0), Hidden(0.5, "text")]
        activations = captured(pathway, inputs, sites)
        sum(part.square().sum() for site in sites for part in activations[site]).backward()
        gradients.append({name: p.grad for name, p in pathway.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) > 4
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12)


def test_other_text_is_refused_where_text_is_compared():
    pair, inputs = make_pair({Hidden(at="text")}), tiny_inputs()
    same = tiny_inputs()
    places = [(place, place) for place in range(len(inputs.targets))]
    pair(read_apart(inputs, same, places))
    same.tokens[1, 0] += 1
    count = len(positions(inputs, 1)["text"])
    with pytest.raises(
        ValueError, match=f"sample 'sample-1@0' is {count} tokens of text for the student and {count} others"
    ):
        pair(read_apart(inputs, same, places))


def test_what_does_not_agree_is_refused_with_the_sample_and_both_numbers():
    site = Hidden(at="visual")
    student, teacher = torch.zeros(4, 3), torch.zeros(9, 5)
    head = make_pair().student.head
    activations = Activations({site: [student, student]}, {site: [student, teacher]}, head, head, ("a@0", "b@0"))
    with pytest.raises(ValueError, match=r"sample 'b@0' has 4 tokens of Hidden.* in the student and 9 in the teacher"):
        activations.pairs(site, width=False)
    activations = Activations({site: [student]}, {site: [teacher[:4]]}, head, head, ("a@0",))
    assert len(activations.pairs(site, width=False)) == 1
    with pytest.raises(
        ValueError, match=r"sample 'a@0' has 3 channels of Hidden.* in the student and 5 in the teacher"
    ):
        activations.pairs(site)


def test_sizes_are_shared_out_to_samples():
    assert share([4, 4, 8], [2, 2, 4, 0]) == [1, 1, 1, 0]
    assert share([4, 4, 8], [4, 0, 4]) == [2, 0, 1]
    assert share([], [0, 0]) == [0, 0]
    with pytest.raises(
        ValueError, match=r"samples of \[3, 5\] visual tokens do not end where images of the sizes \[4, 4\] do"
    ):
        share([4, 4], [3, 5])
