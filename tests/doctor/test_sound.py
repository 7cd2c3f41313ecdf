"""No false alarm: the doctor looks at every family, and finds nothing wrong with a sound stage."""

import pytest
from cases import found, open_tiny
from tiny_families import BUILDS
from tiny_processors import PROCESSORS

from switchkd.doctor import LOOKING, RUNNING, Examined
from switchkd.methods import KD, SFT, AlignKD, BiLD, FeatureKD
from switchkd.models.families import FAMILIES

#: Every line of the report on a stage that switches.
CHECKS = {
    "student's chat template",
    "steps", "trainable parameters", "KL directions", "answer mask", "student's targets", "teacher's targets", "text of the answers",
    "vocabulary", "student's image token", "end of answers", "answer tokens", "student's image tokens", "teacher's image tokens",
    "student's pixels", "teacher's pixels", "student sees images", "teacher sees images", "student's shift", "teacher's shift",
    "switch", "memory", "data loader", "row lengths", "held-out rows", "student's weights", "teacher's weights",
}  # fmt: skip
#: What depends on what a teacher knows; random ones know nothing.
OF_TRAINED_TEACHERS = {"teacher knows the answers", "normalisation"}

#: The only warning: a random teacher has learned nothing from images.
BLIND = "teacher sees images"
#: The tiny processors have no template, so that one of ours stands in: rightly said.
OURS = "student's chat template"
#: Families whose template closes an answer with a token at which their tiny models do not stop: rightly warned of.
OTHER_ENDS = {"idefics3", "smolvlm", "gemma3"}


def alarms(lines):
    """What is not ok. How fast the loader is depends on what else this machine does: there a warning may be right."""
    wrong = {check: level for check, (level, _) in lines.items() if level != "ok"}
    return {check: level for check, level in wrong.items() if (check, level) != ("data loader", "warning")}


def test_every_family_is_looked_at():
    assert {BUILDS[name].config(16, 1).model_type for name in PROCESSORS} == set(FAMILIES)


#: One family of every way to read images; the others take as long again.
IN_EVERY_TEST = {"llava-siglip-qwen2", "llava_onevision", "qwen2_5_vl", "smolvlm", "gemma3"}


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in IN_EVERY_TEST else pytest.mark.slow) for n in PROCESSORS]
)
def test_no_false_alarm(tmp_path, name):
    lines = found(open_tiny(tmp_path, name))
    expected = {BLIND, OURS, "end of answers"} if name in OTHER_ENDS else {BLIND, OURS}
    assert alarms(lines) == dict.fromkeys(expected, "warning")
    assert set(lines) - OF_TRAINED_TEACHERS == CHECKS


@pytest.mark.long
@pytest.mark.parametrize("method", [SFT(), KD(), KD(beta=1.0), KD(beta=0.5), BiLD(), AlignKD(), FeatureKD()], ids=str)
def test_no_false_alarm_for_other_methods(tmp_path, method):
    lines = found(open_tiny(tmp_path, method=method))
    assert alarms(lines) == {BLIND: "warning", OURS: "warning"}
    assert "switch" not in lines


@pytest.mark.long
def test_every_check_says_something(tmp_path):
    examined = Examined(open_tiny(tmp_path))
    for name, check in (LOOKING | RUNNING).items():
        assert list(check(examined)), name
