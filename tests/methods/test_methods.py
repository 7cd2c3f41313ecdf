"""What methods refuse of their knobs, and the losses that they hand to the fused path."""

import math
from dataclasses import asdict

import pytest

from switchkd.losses import CrossEntropyDBiLD, DBiLDSettings
from switchkd.methods import (
    EMKD,
    KD,
    METHODS,
    AlignKD,
    AlignTI,
    BiLD,
    CompoDistill,
    FeatureKD,
    LLaVAKD,
    LLaVAMoD,
    SwitchKD,
)

REFUSED = [
    (KD, {"beta": -0.1}, r"kd: beta must lie between 0 \(forward KL\) and 1 \(reverse KL\), got -0.1"),
    (KD, {"beta": 1.1}, "kd: beta must lie between"),
    (KD, {"beta": math.nan}, "KD: beta: must be finite, got nan"),
    (BiLD, {"top_k": 2}, "bild: top_k must be at least 3, got 2: the probability of a single pair is always 1"),
    (SwitchKD, {"switch": -1.0}, "switch_kd: weights must be finite and not negative, got align=1.0, switch=-1.0"),
    (SwitchKD, {"align": -1.0}, "switch_kd: weights must be finite and not negative, got align=-1.0"),
    (SwitchKD, {"align": math.nan}, "SwitchKD: align: must be finite, got nan"),
    (SwitchKD, {"switch": math.inf}, "SwitchKD: switch: must be finite, got inf"),
    (SwitchKD, {"align": 0.0, "switch": 0.0}, "align and switch are both 0, .* use method sft"),
    (FeatureKD, {"features": 0.0}, "feature_kd: features must be positive .* use method switch_kd with switch: 0"),
    (FeatureKD, {"align": -1.0}, "feature_kd: features must be positive and align not negative"),
    (FeatureKD, {"align": math.inf}, "FeatureKD: align: must be finite, got inf"),
    (FeatureKD, {"min_k": 9, "window": 8}, "feature_kd: need 2 <= min_k <= window, got min_k=9, window=8"),
    (LLaVAKD, {"visual": -1.0}, "llava_kd: weights must be finite, not negative and not all 0, got .*'visual': -1.0"),
    (
        LLaVAKD,
        {"answers": 0, "visual": 0, "relation": 0},
        "llava_kd: weights must be finite, not negative and not all 0",
    ),
    (LLaVAKD, {"relation": math.nan}, "LLaVAKD: relation: must be finite, got nan"),
    (AlignKD, {"focus": -1.0}, "align_kd: weights must be finite, not negative and not all 0, got .*'focus': -1.0"),
    (AlignKD, dict.fromkeys(("soft", "attention", "projected", "focus"), 0), "align_kd: weights .* not all 0"),
    (AlignKD, {"soft": math.inf}, "AlignKD: soft: must be finite, got inf"),
    (AlignKD, {"top": 0}, "align_kd: top must be at least 1 visual token, got 0"),
    (EMKD, {"matched": -1.0}, "em_kd: weights must be finite, not negative and not all 0, got .*'matched': -1.0"),
    (EMKD, dict.fromkeys(("answers", "matched", "affinity"), 0), "em_kd: weights .* not all 0"),
    (
        CompoDistill,
        {"looks": -1.0},
        "compodistill: weights must be finite, not negative and not all 0, got .*'looks': -1.0",
    ),
    (CompoDistill, {"answers": 0, "looks": 0}, "compodistill: weights .* not all 0"),
    (CompoDistill, {"reading": "both"}, "CompoDistill: reading: must be one of paper, code, got 'both'"),
    (
        AlignTI,
        {"instructed": -1.0},
        "align_ti: weights must be finite, not negative and not all 0, got .*'instructed': -1.0",
    ),
    (AlignTI, {"answers": 0, "instructed": 0}, "align_ti: weights .* not all 0"),
    (AlignTI, {"layer": 1.1}, "align_ti: layer is a depth, from 0 for the first to 1 for the last, got 1.1"),
    (LLaVAMoD, {"mimic": 0.0}, "llava_mod: mimic must be positive and finite, got 0.0; without it, use method sft"),
    (SwitchKD, {"min_k": 1}, "switch_kd: need 2 <= min_k <= window, got min_k=1, window=128"),
    (SwitchKD, {"min_k": 9, "window": 8}, "switch_kd: need 2 <= min_k <= window, got min_k=9, window=8"),
    (SwitchKD, {"top_k": 2}, "switch_kd: top_k must be at least 3, got 2: the probability of a single pair is always"),
    (SwitchKD, {"direction": "backward"}, "SwitchKD: direction: must be one of forward, reverse, got 'backward'"),
    (SwitchKD, {"switch_warmup": 1.5}, "switch_kd: switch_warmup is a share of the steps, from 0 to 1, got 1.5"),
    (SwitchKD, {"switch_warmup": 0.1, "switch": 0.0}, "switch_warmup is 0.1, but switch is 0, so there is nothing"),
    (SwitchKD, {"switch_every": 0}, "switch_every is at least 1 step .* got switch_every=0, switch_until=1.0"),
    (
        SwitchKD,
        {"switch_until": 0.0},
        "switch_until a share of the steps above 0 .* got switch_every=1, switch_until=0.0",
    ),
    (SwitchKD, {"switch_until": 1.5}, "switch_until a share of the steps above 0 and up to 1, got .*switch_until=1.5"),
    (
        SwitchKD,
        {"switch_until": 0.2, "switch_warmup": 0.3},
        "switch_warmup is 0.3 and switch_until 0.2: the switch would end",
    ),
    (SwitchKD, {"switch_layers": -1}, "switch_layers is a number of layers, or 0 for projected features alone, got -1"),
    (
        SwitchKD,
        {"switch_layers": 1, "switch": 0.0},
        "switch is 0, so there is nothing that .*switch_layers=1 could change",
    ),
    (SwitchKD, {"switch_every": 2, "switch": 0.0}, "switch is 0, so there is nothing that switch_every=2"),
    (SwitchKD, {"switch_until": 0.5, "switch": 0.0}, "switch is 0, so there is nothing that .*switch_until=0.5"),
    (FeatureKD, {"fisher_rows": -1}, "feature_kd: fisher_rows must not be negative, got -1"),
    (SwitchKD, {"softmax": "rows"}, "SwitchKD: softmax: must be one of all, row, got 'rows'; did you mean `row`"),
]
REFUSED += [
    (method, {"temperature": value}, message)
    for method in (KD, BiLD, SwitchKD, FeatureKD, LLaVAKD, LLaVAMoD, AlignKD, EMKD, CompoDistill, AlignTI)
    for value, message in (
        (0.0, f"{method.name}: temperature must be positive and finite, got 0.0"),
        (-1.0, f"{method.name}: temperature must be positive and finite, got -1.0"),
        (math.inf, f"{method.__name__}: temperature: must be finite, got inf"),
        (math.nan, f"{method.__name__}: temperature: must be finite, got nan"),
    )
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(("method", "knobs", "message"), REFUSED)
def test_knobs_that_mean_nothing_are_refused(method, knobs, message):
    with pytest.raises(ValueError, match=message):
        method(**knobs)


def test_the_smallest_knobs_that_mean_something_are_taken():
    assert BiLD(top_k=3).top_k == SwitchKD(window=3).window == 3
    assert SwitchKD(window=None, min_k=1000).window is None


def test_every_method_is_found_by_its_name():
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}


def test_the_fused_loss_of_switch_kd_has_its_knobs():
    knobs = {"temperature": 1.5, "window": None, "min_k": 4, "top_k": 9, "direction": "forward"}
    knobs |= {"softmax": "row", "t_squared": True}
    loss = SwitchKD(align=0.5, switch=2.0, **knobs).chunk_loss()
    assert isinstance(loss, CrossEntropyDBiLD)
    assert asdict(loss) == {"align": 0.5, "switch": 2.0, "settings": knobs, "kernels": "auto"}
    assert SwitchKD().chunk_loss().settings == DBiLDSettings()


def test_align_only_and_switch_only():
    aligned, switched = SwitchKD(switch=0), SwitchKD(align=0, direction="forward")
    assert aligned.needs == {"student", "teacher"}
    assert switched.needs == {"student", "teacher", "switch"}
    assert aligned.directions == {"align": "reverse"}
    assert switched.directions == {"switch": "forward"}


def test_the_switch_warms_up_in_equal_parts():
    method = SwitchKD(switch=2.0, switch_warmup=0.4)
    weights = [method.at(step / 10).switch for step in range(1, 11)]
    assert weights == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert method.at(0.1).needs == method.needs
    assert SwitchKD().at(0.001) == SwitchKD()
    assert KD().at(0.001) == KD()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SwitchKD(align=0, switch_layers=2, direction="forward", top_k=8), "direction=forward"),
        (lambda: SwitchKD(align=0, switch_layers=0, t_squared=True), "t_squared=True"),
        (lambda: FeatureKD(align=0, temperature=1.0), "temperature=1.0"),
        (lambda: CompoDistill(looks=0, reading="code"), "reading=code"),
        (lambda: CompoDistill(answers=0, temperature=2.0), "temperature=2.0"),
        (lambda: AlignTI(instructed=0, layer=0.9), "layer=0.9"),
        (lambda: AlignKD(focus=0, top=4), "top=4"),
        (lambda: AlignKD(soft=0, temperature=2.0), "temperature=2.0"),
        (lambda: LLaVAKD(answers=0, visual=0, temperature=2.0), "temperature=2.0"),
        (lambda: EMKD(answers=0, matched=0, temperature=2.0), "temperature=2.0"),
    ],
)
def test_a_knob_that_nothing_reads_is_refused(make, message):
    with pytest.raises(ValueError, match=f"(is|are) 0.*, so there is nothing that .*{message}"):
        make()


def test_a_knob_that_a_term_reads_is_not():
    SwitchKD(align=0, direction="forward")
    SwitchKD(switch_layers=1, temperature=1.0)
    LLaVAKD(answers=0, temperature=2.0)
    assert EMKD(answers=0, temperature=2.0).temperature == 2.0
