"""What a method looks at inside a model is what plain Hugging Face code has there, row by row, in every family."""

import pytest
import torch
from tiny_families import BUILDS, IMAGE_TOKEN, VOCABULARY, batch_for, tiny
from tiny_models import tiny_batch, tiny_llava

from switchkd.models import Pathway
from switchkd.models.capture import Watch, texts_of_rows
from switchkd.models.families.family import share
from switchkd.pairing import Pair
from switchkd.types import LOOKS

every_family = pytest.mark.parametrize("name", BUILDS)


def watched(pathway, batch, looks=LOOKS):
    seen = pathway.see(batch)
    with Watch(pathway, batch, looks) as watch:
        pathway.say(seen, batch)
    return watch.inner(seen, pathway.head)


def positions(batch, row):
    """Visual tokens, and text that is followed by text, counted by hand."""
    ids, real = batch["input_ids"][row].tolist(), batch["attention_mask"][row].tolist()
    visual = [i for i, token in enumerate(ids) if token == IMAGE_TOKEN]
    is_text = [bool(r) and token != IMAGE_TOKEN for token, r in zip(ids, real, strict=True)]
    return visual, [i for i in range(len(ids) - 1) if is_text[i] and is_text[i + 1]]


@every_family
def test_hidden_states_and_attention_are_those_of_the_plain_model(name):
    pathway, batch = Pathway(tiny(name)), batch_for(name, padding_side="left")
    pathway.show_attention(True)
    inner = watched(pathway, batch, frozenset({"visual", "text", "attention"}))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    plain = pathway.model(**inputs, output_hidden_states=True, output_attentions=True)
    for row in range(len(batch["input_ids"])):
        visual, text = positions(batch, row)
        assert (len(visual) > 0) == (row < 2)
        hidden, attention = plain.hidden_states[-1][row], plain.attentions[0][row]
        for found, expected in (
            (inner["visual"][row], hidden[visual]),
            (inner["text"][row], hidden[text]),
            (inner["attention"][row], attention[:, text][:, :, visual]),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert all(len(part) > 10 for part in inner["text"])
    assert (inner["attention"][0].sum() > 1).item()


@every_family
def test_features_go_to_the_rows_of_their_images(name):
    pathway, batch = Pathway(tiny(name)), batch_for(name)
    looks = frozenset({"features", "projected"})
    own = watched(pathway, batch, looks)
    seen = pathway.see(batch)
    torch.testing.assert_close(torch.cat(own["features"]), seen.reshape(-1, seen.shape[-1]), rtol=0, atol=0)
    plain = pathway.model.model.get_image_features(**pathway.family._images(batch), return_dict=True).pooler_output
    flat = [part.reshape(-1, part.shape[-1]) for part in (plain if isinstance(plain, (list, tuple)) else [plain])]
    torch.testing.assert_close(torch.cat(own["projected"]), torch.cat(flat), rtol=0, atol=1e-6)
    tokens = (batch["input_ids"] == IMAGE_TOKEN).sum(dim=1).tolist()
    assert [len(part) for part in own["projected"]] == tokens
    assert [len(part) > 0 for part in own["features"]] == [True, True, False]
    for image, row in ((0, 0), (-1, 1)):  # the last row with images is the second
        other = {**batch, "pixel_values": batch["pixel_values"].clone()}
        other["pixel_values"][image] *= -1
        found = watched(pathway, other, looks)
        for look in looks:
            changed = [not torch.equal(a, b) for a, b in zip(own[look], found[look], strict=True)]
            assert changed == [place == row for place in range(3)], look


def test_rows_without_images_have_no_visual_tokens():
    pathway = Pathway(tiny_llava())
    pathway.show_attention(True)
    inner = watched(pathway, tiny_batch(images=(0, 0)))
    for look in ("features", "projected", "visual"):
        assert [part.shape[0] for part in inner[look]] == [0, 0]
    assert [part.shape[::2] for part in inner["attention"]] == [(2, 0), (2, 0)]


def test_what_nobody_asked_for_is_not_kept():
    pathway, batch = Pathway(tiny_llava()), tiny_batch()
    inner = watched(pathway, batch, frozenset({"features"}))
    with pytest.raises(LookupError, match="nobody looked at visual: the method does not name it in `needs`"):
        inner["visual"]
    assert not pathway.model.model._forward_hooks
    assert not pathway.model.model._forward_pre_hooks


def test_only_eager_attention_keeps_its_weights():
    pathway, batch = Pathway(tiny_llava()), tiny_batch()
    with pytest.raises(
        ValueError, match=r"the llava language model keeps no attention weights: only eager attention does"
    ):
        watched(pathway, batch)
    pathway.show_attention(True)
    watched(pathway, batch)
    pathway.show_attention(False)
    with pytest.raises(ValueError, match="keeps no attention weights"):
        watched(pathway, batch)


@pytest.mark.parametrize("part", ["student", "teacher"])
def test_both_models_are_watched_in_one_forward_each(part):
    student, teacher = Pathway(tiny_llava(seed=2)), Pathway(tiny_llava(hidden=40, depth=3, seed=1))
    student.train_only(("vision", "projector", "language"))
    needs = frozenset({"student", "teacher", *LOOKS})
    pair = Pair(student, teacher, needs=needs, vocabulary=VOCABULARY - 6)
    calls = []
    getattr(pair, part).model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    hidden = pair(tiny_batch(), needs, lambda hidden: hidden)
    assert len(calls) == 1
    inner = {"student": hidden.student_inner, "teacher": hidden.teacher_inner}[part]
    assert all(tensor.requires_grad == (part == "student") for look in LOOKS for tensor in inner[look] if len(tensor))
    assert inner.head.rows == VOCABULARY - 6  # padding rows take no part
    assert torch.equal(inner.head.weight, getattr(pair, part).head.weight[: VOCABULARY - 6])


def test_the_teacher_is_watched_while_it_reads_its_own_batch():
    student, teacher = Pathway(tiny_llava(seed=2)), Pathway(tiny_llava(hidden=40, depth=3, seed=1))
    needs = frozenset({"student", "teacher", "features", "text"})
    pair, batch, theirs = (
        Pair(student, teacher, needs=needs, vocabulary=VOCABULARY),
        tiny_batch(),
        tiny_batch(padding_side="left"),
    )
    theirs["pixel_values"] *= 2
    batch["teacher"] = theirs
    found = pair(batch, needs, lambda hidden: hidden).teacher_inner
    alone = watched(teacher, theirs, frozenset({"features", "text"}))
    for look in ("features", "text"):
        for one, other in zip(found[look], alone[look], strict=True):
            assert torch.equal(one, other)


def test_heads_are_cut_to_the_ids_that_two_tokenizers_share():
    student, teacher = Pathway(tiny_llava(seed=2)), Pathway(tiny_llava(hidden=40, depth=3, seed=1))
    needs, ids = frozenset({"student", "teacher", "visual"}), ([7, 3, 90], [5, 4, 11])
    hidden = Pair(student, teacher, needs=needs, vocabulary=ids)(tiny_batch(), needs, lambda hidden: hidden)
    assert torch.equal(hidden.student_inner.head.weight, student.head.weight[ids[0]])
    assert torch.equal(hidden.teacher_inner.head.weight, teacher.head.weight[ids[1]])


def test_attention_under_gradient_checkpointing_has_the_same_gradients():
    found = []
    for saving in (False, True):
        pathway, batch = Pathway(tiny_llava().double()), tiny_batch()
        pathway.train_only(("language",))
        pathway.show_attention(True)
        pathway.train()
        if saving:
            pathway.model.activation_checkpointing_enable({"use_reentrant": False})
        sum(part.square().sum() for part in watched(pathway, batch)["attention"]).backward()
        found.append({name: p.grad for name, p in pathway.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 4
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-12)


def test_other_text_is_refused_where_text_is_compared():
    student, teacher = Pathway(tiny_llava(seed=2)), Pathway(tiny_llava(seed=1))
    needs = frozenset({"student", "teacher", "text"})
    pair, batch = Pair(student, teacher, needs=needs, vocabulary=VOCABULARY), tiny_batch()
    theirs = {**batch, "input_ids": batch["input_ids"].clone()}
    batch["teacher"] = theirs
    pair(batch, needs)
    theirs["input_ids"][1, 0] += 1
    count = len(texts_of_rows(student, batch)[1])
    with pytest.raises(
        ValueError, match=f"row 1 of a batch is {count} tokens of text for the student and {count} others"
    ):
        pair(batch, needs)


def test_sizes_are_shared_out_to_rows():
    assert share([4, 4, 8], [2, 2, 4, 0]) == [1, 1, 1, 0]
    assert share([4, 4, 8], [4, 0, 4]) == [2, 0, 1]
    assert share([], [0, 0]) == [0, 0]
    with pytest.raises(
        ValueError, match=r"rows of \[3, 5\] visual tokens do not end where images of the sizes \[4, 4\] do"
    ):
        share([4, 4], [3, 5])
