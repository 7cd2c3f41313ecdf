from collections import Counter, defaultdict
from itertools import islice

import pytest
from solve import solve

from switchkd.world import KINDS
from switchkd.world.scenes import DIFFICULTIES
from switchkd.world.write import samples

#: Highest share one answer may have within its kind. Yes/no and a size that half the time is "none" cannot go below a half.
BLIND = {
    "perception": 0.15,
    "count": 0.42,
    "relation": 0.42,
    "comparison": 0.5,
    "digit": 0.16,
    "existence": 0.56,
    "hallucination": 0.56,
    "caption": 0.05,
    "yes_no": 0.56,
    "choice": 0.32,
}


@pytest.fixture(scope="module")
def drawn():
    return list(islice(samples(7, "train", "medium"), 400))


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_answer_is_what_an_independent_solver_reads_off_the_scene(difficulty):
    for scene, questions, _ in islice(samples(3, "train", difficulty), 100):
        for question in questions:
            assert solve(scene.describe(), question.text) == question.answer, (scene.describe(), question)


def test_every_picture_is_asked_every_kind_once_in_changing_order(drawn):
    assert set(BLIND) == set(KINDS)
    assert all(sorted(q.kind for q in questions) == sorted(KINDS) for _, questions, _ in drawn)
    first = Counter(questions[0].kind for _, questions, _ in drawn)
    assert min(first[kind] for kind in KINDS) > 20


def test_a_blind_guesser_is_weak(drawn):
    answers = defaultdict(Counter)
    for _, questions, _ in drawn:
        for question in questions:
            answers[question.kind][question.answer] += 1
    share = {kind: max(found.values()) / found.total() for kind, found in answers.items()}
    assert all(share[kind] <= BLIND[kind] for kind in KINDS), share


def test_absent_things_are_plausible(drawn):
    for scene, questions, _ in drawn:
        (question,) = [q for q in questions if q.kind == "hallucination"]
        colour, shape = question.text.rstrip("?").split()[-2:]
        assert any(thing.colour == colour for thing in scene.things)
        assert any(thing.form == shape for thing in scene.things)


def test_wording_varies(drawn):
    openings = defaultdict(set)
    for _, questions, _ in drawn:
        for question in questions:
            openings[question.kind].add(question.text.split()[0])
    assert all(len(openings[kind]) >= 2 for kind in set(KINDS) - {"choice", "perception", "relation", "yes_no"}), (
        openings
    )
