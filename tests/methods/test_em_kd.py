"""em_kd: visual tokens of both models matched first, then reverse KL between them, and how they relate to text."""

import math

import oracles
import pytest
import torch
from cases import open_tiny
from inner_cases import make_pair, reached, samples, signals_of, written_out
from tiny_models import read_apart, tiny_inputs

from switchkd.batch import TEACHER
from switchkd.doctor.check_directions import directions
from switchkd.doctor.samples import Examined
from switchkd.methods import EMKD, SFT
from switchkd.models.capture import Hidden, HiddenSet

VISUAL, TEXT = HiddenSet(at="visual"), Hidden(at="text")


def said(student, teacher, student_text, teacher_text):
    """Signals of samples whose logits at visual tokens and text are written out."""
    both = ({VISUAL: visual, TEXT: text} for visual, text in ((student, student_text), (teacher, teacher_text)))
    return written_out(*both, logits=student[0].shape[1])


def test_hand_computed():
    # Hidden states are logits, in units of log 2. The teacher has two visual tokens, (0, 8, 0) and (1, 0, 0), the student one, (0, 0, 0):
    # distances 8 and 1, so it is matched with the second. p_S = ⅓ each, p_T = ½, ¼, ¼: KL(p_S‖p_T) = ⅓ log(⅔) + ⅔ log(4/3)
    # = (5/3) log 2 − log 3. Text (1, 0, 0) in both. The cosine is 1 in the teacher; the student's (0, 0, 0) has none and counts as 0:
    # the difference of 1 is ½. The second row has no image.
    unit = math.log(2)
    teacher, text = samples([[0.0, 8 * unit, 0.0], [unit, 0.0, 0.0]], []), samples([[1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0]])
    student = samples([[0.0, 0.0, 0.0]], [])
    found = EMKD(matched=2.0, affinity=4.0).sample_terms(said(student, teacher, text, text), None)
    assert found["matched"].tolist() == pytest.approx([2 * (5 / 3 * unit - math.log(3)), 0.0], abs=1e-12)
    assert found["affinity"].tolist() == [2.0, 0.0]


def read_by_both():
    """The same text, 9 visual tokens of each picture for the student and 4 for the teacher; a picture, two, and none."""
    student, teacher = (tiny_inputs(image_size=size) for size in (24, 16))
    return read_apart(student, teacher, [(place, place) for place in range(len(student.targets))])


def test_oracle_with_unequal_numbers_of_visual_tokens():
    method = EMKD(matched=0.7, affinity=3.0, temperature=2.0)
    signals = make_pair(method, image_size=24)(read_by_both())
    found = method.sample_terms(signals, None)
    both = signals.activations[TEACHER]
    assert [len(x) for x in both.student[VISUAL]] == [9, 18, 0]
    assert [len(x) for x in both.teacher[VISUAL]] == [4, 8, 0]
    assert {name: value[2].item() for name, value in found.items()} == {"matched": 0, "affinity": 0}
    student, teacher = both.student[VISUAL][0], both.teacher[VISUAL][0]
    z_s, z_t = both.student_head.logits(student), both.teacher_head.logits(teacher)
    _, pairs = oracles.matched(z_s, z_t)
    students, teachers = map(list, zip(*pairs, strict=True))
    divergence = sum(oracles.reverse_kl(z_s[students], z_t[teachers], 2.0)) / 4
    assert found["matched"][0].item() == pytest.approx(0.7 * divergence, abs=1e-10)
    affinity = oracles.affinity(student[students], both.student[TEXT][0], teacher[teachers], both.teacher[TEXT][0])
    assert found["affinity"][0].item() == pytest.approx(3.0 * affinity, abs=1e-10)


@pytest.mark.parametrize("term", ["matched", "affinity"])
def test_the_terms_train_all_parts(term):
    method = EMKD()
    pair = make_pair(method)
    assert reached(pair, method.sample_terms(signals_of(pair), None)[term].sum()) == {"vision", "projector", "language"}


def test_equal_models_have_nothing_to_learn():
    method = EMKD()
    pair = make_pair(method, hidden=40, depth=3)
    pair.student.model.load_state_dict(pair.teacher.model.state_dict())
    found = method.sample_terms(signals_of(pair), None)
    assert {name: value.abs().max().item() for name, value in found.items()} == pytest.approx(
        {"matched": 0, "affinity": 0}, abs=1e-12
    )


def test_only_what_has_a_weight_is_asked_for():
    assert EMKD(matched=0).directions == {"answers": "reverse"}
    assert EMKD(affinity=0).needs == {"student", "teacher", VISUAL}
    assert EMKD(matched=0).needs == {"student", "teacher", VISUAL, TEXT}
    assert EMKD(matched=0, affinity=0).needs == {"student", "teacher"}
    assert SFT().plus(matched=1.0).needs == {"student", "teacher", VISUAL}
    assert SFT().plus(matched=1.0).directions == {"matched": "reverse"}


def test_the_doctor_finds_both_divergences_reverse(tmp_path):
    lines = list(directions(Examined(open_tiny(tmp_path, method=EMKD()))))
    assert [(line.level, line.detail.split(":")[0]) for line in lines] == [("ok", "answers"), ("ok", "matched")]


def test_half_precision_states_become_float32_logits():
    inside = (
        samples([[3.0, 0.0], [0.0, 1.0]]),
        samples([[1.0, 0.0], [0.0, 2.0]]),
        *(samples([[1.0, 2.0]]) for _ in range(2)),
    )
    exact = EMKD().sample_terms(said(*inside), None)
    for name, value in EMKD().sample_terms(said(*([x.bfloat16() for x in values] for values in inside)), None).items():
        assert value.item() == pytest.approx(exact[name].item(), abs=1e-5)
        assert torch.promote_types(value.dtype, torch.float32) == value.dtype


def test_another_text_is_refused():
    """By the first batch: the tokenizer's own difference is one of the pair's report."""
    student, teacher = (tiny_inputs(image_size=size, seed=seed) for size, seed in ((24, 0), (16, 1)))
    batch = read_apart(student, teacher, [(place, place) for place in range(len(student.targets))])
    with pytest.raises(ValueError, match=r"sample 'sample-0@0' is \d+ tokens of text for the student and \d+ others"):
        make_pair(EMKD(), image_size=24)(batch)
    make_pair(EMKD(affinity=0), image_size=24)(batch)  # which compares no text
    short = samples([[1.0, 1.0]]), samples([[1.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"has 1 tokens of Hidden\(.*'text'\) in the student and 2 in the teacher"):
        EMKD().sample_terms(said(short[0], short[1], *short), None)
