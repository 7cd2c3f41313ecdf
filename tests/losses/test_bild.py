import math

import oracles
import pytest
import torch

from switchkd.losses import bild


def pair(positions=5, vocab=40, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, positions, vocab, generator=generator, dtype=torch.float64)
    return student, teacher


def test_hand_computed_four_tokens():
    # In units of log 2, τ = 1, k = 3. Teacher (4, 3, 1, 0): top 0, 1, 2. Student (1, 2, 0, 3): top 3, 1, 0.
    # Teacher leads: teacher's d = 1, 3, 2 → weights 2, 8, 4 of 14; student's d = −1, 1, 2 → ½, 2, 4 of 6½.
    #   KL(p_T‖p_S) = (2·log 4 + 8·log 4 + 4·log 1)/14 − log(14/6.5)
    # Student leads (ids 3, 1, 0): student's d = 1, 2, 1 → 2, 4, 2 of 8; teacher's d = −3, −4, −1 → ⅛, 1/16, ½ of 11/16.
    #   KL(p_T‖p_S) = (2·log(1/16) + 1·log(1/64) + 8·log(1/4))/11 + log(8·16/11)
    #   (the teacher's weights are 2, 1, 8 of 11)
    teacher = torch.tensor([[4.0, 3, 1, 0]], dtype=torch.float64) * math.log(2)
    student = torch.tensor([[1.0, 2, 0, 3]], dtype=torch.float64) * math.log(2)
    teacher_led = 10 * math.log(4) / 14 - math.log(14 / 6.5)
    student_led = (2 * math.log(1 / 16) + math.log(1 / 64) + 8 * math.log(1 / 4)) / 11 + math.log(8 * 16 / 11)
    assert bild(student, teacher, top_k=3, temperature=1.0).item() == pytest.approx(
        teacher_led + student_led, abs=1e-13
    )


@pytest.mark.parametrize("scale", [0.5, 5.0, 20.0])
@pytest.mark.parametrize("top_k", [2, 8, 39, 40, 60])
def test_oracle(scale, top_k):
    student, teacher = pair(scale=scale)
    expected = torch.tensor(oracles.bild(student, teacher, top_k, 3.0), dtype=torch.float64)
    torch.testing.assert_close(bild(student, teacher, top_k=top_k), expected, rtol=0, atol=1e-10)


def test_properties():
    student, teacher = pair(positions=50)
    loss = bild(student, teacher)
    assert (loss > 0).all()
    assert torch.equal(bild(teacher, teacher), torch.zeros(50, dtype=torch.float64))
    shift = torch.linspace(-30, 30, 50, dtype=torch.float64)[:, None]
    torch.testing.assert_close(bild(student + shift, teacher - shift), loss, rtol=1e-10, atol=1e-10)


def test_gradient():
    student, teacher = pair(positions=3, vocab=12)
    assert torch.autograd.gradcheck(lambda z: bild(z, teacher, top_k=5), student.requires_grad_())


def test_bf16_is_ranked_and_summed_in_float32():
    student, teacher = pair(positions=64, vocab=500)
    truth = bild(student.float(), teacher.float())
    student, teacher = student.bfloat16(), teacher.bfloat16()
    ours = bild(student, teacher)
    assert ours.dtype == torch.float32
    assert torch.equal(ours, bild(student.float(), teacher.float()))

    i, j = torch.triu_indices(8, 8, offset=1)
    plain = torch.zeros(64, dtype=torch.bfloat16)
    for leader in (teacher, student):
        ids = leader.topk(8).indices
        log_s, log_t = (
            ((z[:, i] - z[:, j]) / 3).log_softmax(-1) for z in (student.gather(1, ids), teacher.gather(1, ids))
        )
        plain += (log_t.exp() * (log_t - log_s)).sum(-1)
    assert (ours - truth).abs().mean() < (plain - truth).abs().mean()


def test_no_positions():
    assert bild(torch.zeros(0, 9), torch.zeros(0, 9)).shape == (0,)
