"""align_ti, its first part: KL at the visual tokens that the teacher's instruction looks at."""

import math

import oracles
import pytest
import torch
from cases import open_tiny
from inner_cases import make_pair, reached, samples, signals_of, written_out
from tiny_models import IMAGE_TOKEN, read_apart, tiny_batch, tiny_inputs, tiny_llava

from switchkd.batch import TEACHER
from switchkd.doctor.check_directions import directions
from switchkd.doctor.samples import Examined
from switchkd.methods import SFT, AlignTI, LLaVAKD
from switchkd.models import Pathway
from switchkd.models.capture import Hidden, TeacherAttention, capture, of_samples

VISUAL, LOOKS = Hidden(at="visual"), TeacherAttention(layer=0.5, of="prompt")


def test_hand_computed():
    # Hidden states are logits, in units of log 2; two visual tokens. Two heads, one query: (.1 .3) and (.2 .2), so the first token gets
    # 3/8 of the looks and the second 5/8. p_S is uniform; p_T = (⅔, ⅓) at the first: KL = ⅔ log 4/3 + ⅓ log ⅔ = (5/3) log 2 − log 3,
    # and (⅘, ⅕) at the second: KL = ⅘ log 8/5 + ⅕ log ⅖ = (13/5) log 2 − log 5. The second row has no picture.
    unit = math.log(2)
    student = {VISUAL: samples([[0.0, 0.0], [0.0, 0.0]], [])}
    looks = torch.tensor([[[0.1, 0.3]], [[0.2, 0.2]]], dtype=torch.float64)
    teacher = {VISUAL: samples([[unit, 0.0], [2 * unit, 0.0]], []), LOOKS: [looks, torch.zeros(2, 1, 0).double()]}
    found = AlignTI(instructed=2.0).sample_terms(written_out(student, teacher, logits=2), None)
    first, second = (5 / 3) * unit - math.log(3), (13 / 5) * unit - math.log(5)
    assert found["instructed"].tolist() == pytest.approx([2 * (0.375 * first + 0.625 * second), 0.0], abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_oracle(temperature):
    method = AlignTI(instructed=0.7, temperature=temperature)
    signals = signals_of(make_pair(method))
    found = method.sample_terms(signals, None)["instructed"]
    both = signals.activations[TEACHER]
    for student, teacher, looks, value in zip(
        both.student[VISUAL], both.teacher[VISUAL], both.teacher[LOOKS], found, strict=True
    ):
        z_s, z_t = both.student_head.logits(student), both.teacher_head.logits(teacher)
        divergences = oracles.forward_kl(z_s, z_t, temperature)
        weights = oracles.attention_received(looks)
        expected = math.fsum(w * kl for w, kl in zip(weights, divergences, strict=True))
        assert value.item() == pytest.approx(0.7 * expected, abs=1e-9)
    assert found[2] == 0 < found[:2].min()
    assert (both.teacher[LOOKS][0].sum(dim=(0, 1)) > 0).all()


def test_where_all_is_looked_at_alike_it_is_the_visual_term_of_llava_kd():
    signals = signals_of(make_pair(AlignTI()))
    both = signals.activations[TEACHER]
    both.teacher[LOOKS] = [torch.ones_like(looks) for looks in both.teacher[LOOKS]]
    expected = LLaVAKD().sample_terms(signals, None)["visual"]
    torch.testing.assert_close(AlignTI().sample_terms(signals, None)["instructed"], expected)


@pytest.mark.parametrize(("layer", "place"), [(0.0, 0), (0.5, 1), (1.0, 2)])
def test_the_looks_are_those_of_what_is_asked(layer, place):
    """Against what transformers shows of the plain model: of neither visual tokens nor answers, nor padding."""
    site = TeacherAttention(layer=layer, of="prompt")
    pathway, inputs = Pathway(tiny_llava(depth=3)), tiny_inputs(images=(1, 2))
    pathway.show_attention(True)
    with torch.no_grad(), capture(pathway, pathway.see(inputs), inputs, frozenset({site})) as captured:
        pathway.say(captured.features, inputs)
    found = of_samples(captured, frozenset({site}))[site]
    with torch.no_grad():
        plain = pathway.model(input_ids=inputs.tokens, output_attentions=True, **inputs.images).attentions[place]
    answers = [[False] * inputs.tokens.shape[1] for _ in inputs.tokens]
    for flat in inputs.predicts.tolist():
        answers[flat // inputs.tokens.shape[1]][flat % inputs.tokens.shape[1] + 1] = True
    for number, length in enumerate(inputs.lengths.tolist()):
        tokens = inputs.tokens[number].tolist()
        asked = [p for p in range(length) if tokens[p] != IMAGE_TOKEN and not answers[number][p]]
        visual = [p for p in range(length) if tokens[p] == IMAGE_TOKEN]
        torch.testing.assert_close(found[number], plain[number][:, asked][:, :, visual], rtol=1e-4, atol=1e-6)


def test_only_the_teacher_is_looked_at_for_its_attention():
    pair = make_pair(AlignTI())
    assert (pair.student.attention, pair.teacher.attention) == ("sdpa", "eager")
    both = signals_of(pair).activations[TEACHER]
    assert both.student.keys() == {VISUAL}
    assert both.teacher.keys() == {VISUAL, LOOKS}
    with pytest.raises(LookupError, match="was not captured"):
        both.pairs(LOOKS)


def test_the_term_trains_all_parts():
    method = AlignTI()
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), None)["instructed"].sum()) == {
        "vision",
        "projector",
        "language",
    }


def test_gradcheck():
    generator = torch.Generator().manual_seed(4)
    student, teacher = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    looks = torch.rand(2, 4, 3, generator=generator, dtype=torch.float64)

    def value(x):
        activations = {VISUAL: [x]}, {VISUAL: [teacher], LOOKS: [looks]}
        return AlignTI().sample_terms(written_out(*activations, logits=5), None)["instructed"].sum()

    assert torch.autograd.gradcheck(value, student.requires_grad_())


def test_models_that_read_other_text_are_compared():
    """The looks are the teacher's own; visual tokens are all that both must have alike."""
    method = AlignTI()
    student, teacher = tiny_inputs(images=(1, 2)), tiny_inputs(images=(1, 2), seed=9)
    teacher = teacher._replace(media=student.media)
    found = method.sample_terms(make_pair(method)(read_apart(student, teacher, [(0, 0)], [7])), None)["instructed"]
    assert (found > 0).all()


def test_only_what_has_a_weight_is_asked_for():
    assert AlignTI(instructed=0).needs == {"student", "teacher"}
    assert AlignTI(instructed=0).directions == {"answers": "forward"}
    assert (
        AlignTI().needs
        == SFT().plus(instructed=1.0).needs | {"student", "teacher"}
        == {
            "student",
            "teacher",
            VISUAL,
            LOOKS,
        }
    )
    assert AlignTI(layer=1.0).needs == {"student", "teacher", VISUAL, TeacherAttention(layer=1.0, of="prompt")}
    assert LOOKS.alike == frozenset()


def test_a_row_without_looks_has_no_term():
    site = {VISUAL: samples([[1.0, 0.0], [0.0, 1.0]])}
    found = AlignTI().sample_terms(
        written_out(site, {VISUAL: samples([[0.0, 0.0], [0.0, 0.0]]), LOOKS: [torch.zeros(1, 2, 2)]}, logits=2), None
    )
    assert found["instructed"].tolist() == [0.0]


def test_the_doctor_finds_both_divergences_forward(tmp_path):
    lines = list(directions(Examined(open_tiny(tmp_path, method=AlignTI()))))
    assert [(line.level, line.detail.split(":")[0]) for line in lines] == [("ok", "answers"), ("ok", "instructed")]


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"visual tokens per image: 9 and 4, and the method compares Hidden"):
        make_pair(AlignTI(), image_size=24)


def test_packed_rows_look_at_their_own_pictures():
    from packed_inputs import packed_batch

    method, batch = AlignTI(), tiny_batch(images=(1, 2, 0))
    pair = make_pair(method)
    pair.student.use_attention("eager")
    alone, together = (method.sample_terms(pair(one), None) for one in (batch, packed_batch(batch, (2, 1))))
    torch.testing.assert_close(together["instructed"], alone["instructed"], rtol=1e-5, atol=1e-7)
