"""Videos in every family that reads them: its own processor's batches, held against plain Hugging Face code on tiny random models."""

import copy

import pytest
import torch
from pairs import ALL, PARTS, assert_gradient_on_exactly, compared, own_logits
from tiny_models import read_alike
from tiny_processors import tiny_for
from tiny_videos import VIDEO_PROCESSORS, row, rows, video, video_processor

from switchkd.data.reader import Reader
from switchkd.losses import dbild
from switchkd.models import Pathway
from switchkd.models.capture import Capture, Projected, Vision, capture, of_samples
from switchkd.pairing import Pair
from switchkd.pairing.pair_report import compare_models

pytest.importorskip("torchvision")
#: Of each way in which videos enter one; the others take as long again.
_SHORT = ("qwen3_vl", "llava_onevision", "smolvlm")
every_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in _SHORT else pytest.mark.long) for name in VIDEO_PROCESSORS]
)


@pytest.fixture(scope="module")
def readers():
    return {name: Reader(video_processor(name)) for name in VIDEO_PROCESSORS}


def models(readers, name):
    """Teacher and student with language models of different width and depth, in double precision."""
    processor = readers[name].processor
    return tiny_for(name, processor, seed=2).double(), tiny_for(name, processor, hidden=32, depth=4, seed=1).double()


def inputs_of(readers, name, samples=None):
    reader = readers[name]
    inputs = reader.inputs([reader.encode(one) for one in samples or rows()])
    media = {
        kind: {key: one.double() if key.startswith("pixel_values") else one for key, one in of_kind.items()}
        for kind, of_kind in inputs.media.items()
    }
    return inputs._replace(media=media)


def plain(model, inputs):
    logits = model(
        input_ids=inputs.tokens, attention_mask=inputs.is_text().long(), **(inputs.shown or {}), **inputs.types
    ).logits
    return logits.flatten(0, 1)[inputs.predicts]


def one_by_one(readers, name):
    """The rows that plain OneVision can read: it takes as many frames of each video."""
    return rows()[:2] + rows()[3:] if name == "llava_onevision" else rows()


@every_family
def test_rows_with_videos_pictures_both_and_neither_say_what_the_plain_model_says(readers, name):
    model, _ = models(readers, name)
    inputs = inputs_of(readers, name, one_by_one(readers, name))
    expected = plain(model, inputs)
    assert expected.std() > 0.1
    torch.testing.assert_close(own_logits(Pathway(model), inputs), expected, rtol=0, atol=1e-10)


def test_videos_of_unequal_lengths_in_one_batch_say_what_each_says_alone(readers):
    """OneVision: the plain model takes as many frames of each video of a batch."""
    model, _ = models(readers, "llava_onevision")
    samples = [row(str(count), [("video", video(count, seed=count))]) for count in (1, 4, 3)]
    together = own_logits(Pathway(model), inputs_of(readers, "llava_onevision", samples))
    alone = [plain(model, inputs_of(readers, "llava_onevision", [one])) for one in samples]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-10)


def test_processors_that_differ_in_videos_alone_read_their_own_inputs(readers):
    reader, other = readers["llava_onevision"], video_processor("llava_onevision")
    config = models(readers, "llava_onevision")[0].config
    same = compare_models((config, reader.processor), (config, other))
    assert [one.what for one in same.differences if one.what.startswith("video")] == []
    other.video_processor.image_mean, other.video_processor.fps = [0.5, 0.5, 0.5], 7
    differ = compare_models((config, reader.processor), (config, other))
    assert [one.what for one in differ.differences if one.what.startswith("video")] == ["video processor's image_mean"]
    assert (same.separate_inputs, differ.separate_inputs) == (False, True)


@every_family
def test_every_frame_reaches_the_answers_of_its_own_row_alone(readers, name):
    model, _ = models(readers, name)
    pathway, samples = Pathway(model), rows()
    first = own_logits(pathway, inputs_of(readers, name, samples))
    for frame in (0, 3):
        changed = copy.deepcopy(samples)
        changed[0]["videos"][0]["frames"][frame] = video(1, seed=77)["frames"][0]
        inputs = inputs_of(readers, name, changed)
        differs = (own_logits(pathway, inputs) - first).abs().amax(dim=1) > 1e-7
        assert torch.equal(differs, inputs.sample == 0), frame


@every_family
def test_teacher_equal_to_student_gives_the_switch_nothing_to_teach(readers, name):
    model, _ = models(readers, name)
    student = Pathway(copy.deepcopy(model))
    student.train_only(PARTS)
    pair = Pair(student, Pathway(model), needs=ALL, vocabulary=len(readers[name].format.tokenizer)).eval()
    logits = compared(pair, read_alike(inputs_of(readers, name)))
    assert torch.equal(logits.switch, logits.teacher)


@every_family
def test_the_switch_gradient_of_videos_reaches_the_vision_encoder_and_nothing_else(readers, name):
    student, teacher = (Pathway(model) for model in models(readers, name))
    student.train_only(PARTS)
    pair = Pair(student, teacher, needs=ALL, vocabulary=len(readers[name].format.tokenizer)).train()
    logits = compared(pair, read_alike(inputs_of(readers, name, rows()[:1])))
    dbild(logits.switch, logits.teacher).sum().backward()
    assert_gradient_on_exactly(pair.student.part_parameters("vision").values(), pair)


@every_family
def test_grids_of_videos_are_frames_and_come_back_as_features(readers, name):
    model, _ = models(readers, name)
    pathway, inputs = Pathway(model), inputs_of(readers, name)
    features, family = pathway.see(inputs), pathway.family
    grids = family.to_grids(features, inputs.shown)
    assert [tuple(grid.shape[:2]) for grid in grids] == family.grid_shapes(inputs.shown)
    #: 4 + 4 + 2 frames, by two in Qwen; two pictures of one image, or of three tiles
    assert len(grids) == (5 + 2 if name.startswith("qwen") else 10 + 6)
    assert torch.equal(family.from_grids(grids, inputs.shown), features)


@every_family
def test_what_is_captured_belongs_to_its_sample(readers, name):
    """Whatever else is in the batch."""
    model, _ = models(readers, name)
    pathway, sites = Pathway(model), frozenset((Vision(), Projected()))

    def captured(samples):
        inputs = inputs_of(readers, name, samples)
        features = pathway.see(inputs)
        with capture(pathway, features, inputs, sites) as found:
            pathway.say(features, inputs)
        return of_samples(found, sites)

    together, alone = captured(rows()), [captured([one]) for one in rows()]
    for site in sites:
        assert [len(one) > 0 for one in together[site]] == [True, True, True, False]
        for number, one in enumerate(alone):
            torch.testing.assert_close(together[site][number], one[site][0], rtol=0, atol=1e-10)
    tokens = Capture(pathway, inputs_of(readers, name), None).counts("visual")
    assert tokens == [len(one) for one in together[Projected()]]


@every_family
def test_projected_tokens_are_in_the_order_of_the_row(readers, name):
    """Of a picture between two videos too: what attention says of the third visual token is about the third of these."""
    model, _ = models(readers, name)
    pathway, inputs, entered = Pathway(model), inputs_of(readers, name), []
    features = pathway.see(inputs)
    first = pathway.family.layers(model)[0]
    handle = first.register_forward_pre_hook(lambda module, given, named: entered.append(given[0]), with_kwargs=True)
    with capture(pathway, features, inputs, frozenset({Projected()})) as found:
        pathway.say(features, inputs)
    handle.remove()
    expected = found.split(entered[0], found.positions("visual"))
    for one, other in zip(of_samples(found, frozenset({Projected()}))[Projected()], expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@every_family
def test_packed_rows_with_videos_say_what_they_say_alone(readers, name):
    model, _ = models(readers, name)
    pathway, reader = Pathway(model), readers[name]
    padded = inputs_of(readers, name)
    joined = reader.inputs([reader.encode(one) for one in rows()], [3, 1])._replace(media=padded.media)
    assert joined.offsets is not None
    torch.testing.assert_close(own_logits(pathway, joined), own_logits(pathway, padded), rtol=0, atol=1e-10)
