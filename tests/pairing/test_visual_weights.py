"""What an answer token weighs: how much the teacher's opinion of it depends on the pictures' detail."""

import math
from dataclasses import replace

import oracles
import pytest
import torch
from inner_cases import make_pair, signals_of
from packed_inputs import packed_batch
from tiny_models import IMAGE_TOKEN, plain_logits, read_apart, tiny_batch, tiny_inputs

from switchkd.batch import TEACHER
from switchkd.methods import KD, SwitchKD
from switchkd.names import VisualWeights
from switchkd.pairing.visual_weights import visual_weights, weighed
from switchkd.signals import Compared, FromHidden, Head

#: Half of the answers of a row of four are in its first group, and a picture of 16 × 16 is 2 × 2 cells.
SETTINGS = VisualWeights(share=0.5, high=0.75, detail=0.1)


def test_hand_computed():
    # Row 0 has five tokens: one is the first group and weighs half of 5, the four others share the other half. Row 1 has no picture. In
    # row 2 nothing depends on what is seen; row 3 has one token, and its second group is empty.
    advantage = torch.tensor([0.5, 9.0, 2.0, 0.0, 1.0, 3.0, 0.0, 0.0, 7.0]).double()
    sample = torch.tensor([0, 1, 0, 0, 0, 0, 2, 2, 3])
    shows = torch.tensor([True, False, True, True])
    found = visual_weights(advantage, sample, shows, share=0.2, high=0.5)
    assert found.tolist() == [0.625, 1.0, 0.625, 0.625, 0.625, 2.5, 1.0, 1.0, 1.0]


def test_of_the_weighted_loss_each_group_has_its_part():
    # Σ w·KL / n = λ·mean over the first group + (1 − λ)·mean over the other, which is the paper's equation
    advantage = torch.tensor([1.0, 0.0, 4.0, 0.5]).double()
    losses = torch.tensor([0.3, 0.7, 2.0, 0.1], dtype=torch.float64)
    row = torch.zeros(4, dtype=torch.long)
    found = visual_weights(advantage, row, torch.tensor([True]), share=0.5, high=0.8)
    expected = 0.8 * (0.3 + 2.0) / 2 + 0.2 * (0.7 + 0.1) / 2
    assert (found * losses).mean().item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("share", "high"), [(0.2, 0.5), (0.5, 0.9), (0.01, 1.0), (0.99, 0.0)])
def test_oracle(share, high):
    generator = torch.Generator().manual_seed(2)
    advantage = (2 * torch.randn(60, generator=generator, dtype=torch.float64)).round(decimals=1).clamp(min=0)  # ties
    sample = torch.randint(6, (60,), generator=generator)  # of first words, rows come a second time
    shows = torch.tensor([True, True, False, True, True, True, True])  # and the last has no answer
    found = visual_weights(advantage, sample, shows, share=share, high=high)
    expected = oracles.visual_weights(advantage.tolist(), sample.tolist(), shows.tolist(), share, high)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    for row in range(6):
        assert found[sample == row].mean().item() == pytest.approx(1, abs=1e-12)


def test_a_share_of_fifteen_is_three():
    advantage = torch.arange(1.0, 16.0).double()
    found = visual_weights(advantage, torch.zeros(15, dtype=torch.long), torch.tensor([True]), share=0.2, high=0.5)
    assert found.tolist() == [7.5 / 12] * 12 + [2.5] * 3


def test_first_words_are_ranked_with_the_other_answers_of_their_row():
    def said(answers, *probabilities):
        """A teacher that is so sure of id 0, which every answer is."""
        logits = torch.tensor([[math.log(p / (1 - p)), 0.0] for p in probabilities], dtype=torch.float64)
        teacher = FromHidden(logits, Head(torch.eye(2).double()))
        return Compared(teacher, 2, torch.zeros(len(logits), dtype=torch.long), answers=torch.tensor(answers))

    whole = replace(said([1, 2, 3], 0.5, 0.8, 0.4), first_words=said([0], 0.9))
    blurred = replace(said([1, 2, 3], 0.5, 0.4, 0.8), first_words=said([0], 0.1))
    settings = VisualWeights(share=0.25, high=0.5)
    found = weighed(whole, blurred, torch.zeros(4, dtype=torch.long), torch.tensor([True]), settings)
    assert found.advantage.tolist() == pytest.approx([0, math.log(2), 0], abs=1e-12)
    assert found.first_words.advantage.tolist() == pytest.approx([math.log(9)], abs=1e-12)
    assert found.first_words.weights.tolist() == [2.0]
    assert found.weights.tolist() == pytest.approx([2 / 3] * 3)


def by_hand(model, inputs, images, sample, places=slice(None), vocabulary=90):
    """Weights and advantages from two runs of the plain model and its own softmax, the pictures made coarse pixel by pixel."""
    pictures = images["pixel_values"]
    blurred = torch.tensor([[oracles.coarse(channel.tolist(), (2, 2)) for channel in picture] for picture in pictures])
    likely = []
    for pixels in (pictures, blurred.to(pictures.dtype)):
        logits = plain_logits(model, inputs._replace(media={"image": {"pixel_values": pixels}}))[places, :vocabulary]
        targets = inputs.targets[places].tolist()
        found = zip(logits.tolist(), targets, strict=True)
        likely.append([oracles.log_softmax(z)[y] if y < vocabulary else 0.0 for z, y in found])
    advantage = [max(a - b, 0) for a, b in zip(*likely, strict=True)]
    shows = (inputs.tokens == IMAGE_TOKEN).any(dim=1).tolist()
    return oracles.visual_weights(advantage, sample, shows, 0.5, 0.75), advantage


def test_a_pair_weighs_answers_by_two_readings_of_its_teacher():
    pair = make_pair(KD().weighted(SETTINGS))
    (one,) = signals_of(pair).compared.values()
    inputs = tiny_inputs(images=(1, 2, 0))
    weights, advantage = by_hand(pair.teacher.model, inputs, inputs.media["image"], inputs.sample.tolist())
    assert one.advantage.tolist() == pytest.approx(advantage, abs=1e-5)  # eager and sdpa, float32 pixels
    assert one.weights.tolist() == pytest.approx(weights, abs=1e-12)
    assert 0 < sum(one.weights != 1) < len(one.weights)
    assert torch.equal(one.weights[inputs.sample == 2], torch.ones(7).double())  # no picture
    assert not one.weights.requires_grad


def test_a_teacher_that_reads_apart_weighs_the_answers_that_are_compared():
    """Its own pictures, twice as large, and its own text: the weights belong to the pairs of tokens."""
    pair = make_pair(KD().weighted(SETTINGS))
    student, teacher = tiny_inputs(images=(1, 2, 0)), tiny_inputs(images=(1, 2, 0), seed=9)
    places = [(0, 0), (2, 1), (3, 4), (5, 5), (6, 8), (7, 7), (11, 12), (14, 13)]
    columns = teacher.targets[[second for _, second in places]].tolist()
    (one,) = pair(read_apart(student, teacher, places, columns)).compared.values()
    sample = student.sample[[first for first, _ in places]].tolist()
    chosen = torch.tensor([second for _, second in places])
    weights, advantage = by_hand(pair.teacher.model, teacher, teacher.media["image"], sample, chosen)
    assert one.advantage.tolist() == pytest.approx(advantage, abs=1e-5)
    assert one.weights.tolist() == pytest.approx(weights, abs=1e-12)


def test_an_answer_that_is_no_compared_id_has_no_advantage():
    pair = make_pair(KD().weighted(SETTINGS))
    batch = tiny_batch(images=(1, 2))
    aligned = batch.shared[TEACHER]
    targets = aligned.targets.clone()
    targets[::2] = -1
    one = pair(batch._replace(shared={TEACHER: aligned._replace(targets=targets)})).compared[TEACHER]
    assert not one.advantage[::2].any()
    assert one.advantage[1::2].any()


def test_packed_rows_weigh_the_same():
    pair = make_pair(SwitchKD(window=32).weighted(SETTINGS))
    batch = tiny_batch(images=(1, 2, 0))
    pair.student.use_attention("eager")
    pair.teacher.use_attention("eager")
    alone, together = (pair(one).compared[TEACHER] for one in (batch, packed_batch(batch, (2, 1))))
    torch.testing.assert_close(together.advantage, alone.advantage, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.weights, alone.weights)


def test_without_weights_the_teacher_is_asked_once():
    asked = []
    for method in (KD(), KD().weighted()):
        pair = make_pair(method)
        pair.teacher.model.model.register_forward_hook(lambda *_: asked.append(1))
        one = signals_of(pair).compared[TEACHER]
        assert (one.weights is None) == (len(asked) == 1)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"share": 0.0}, "share must lie between 0 and 1, got 0.0"),
        ({"share": 1.0}, "share must lie between 0 and 1, got 1.0"),
        ({"high": 1.5}, "high is a share, from 0 to 1, got 1.5"),
        ({"detail": 1.0}, "detail must be at least 0 and below 1, where nothing is lost, got 1.0"),
        ({"detail": -0.1}, "detail must be at least 0"),
    ],
)
def test_knobs_that_mean_nothing_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        VisualWeights(**knobs)
