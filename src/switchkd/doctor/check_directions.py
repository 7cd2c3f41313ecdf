"""Whether the divergences of a method point where the method says they do: the most common error of home-made distillation losses."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from switchkd.batch import TEACHER
from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.methods import Method
from switchkd.methods.feature_weights import FeatureWeights
from switchkd.signals import Activations, Compared, FromHidden, Head, Signals, Sizes

#: Ids of the vocabulary of the two known models, and how far the narrow one's favourite stands out: far enough for temperatures up to 20.
_VOCABULARY, _PEAK = 512, 1000.0


def directions(examined: Examined) -> Iterator[Finding]:
    """Each term of the method that declares a direction is shown a pair of models for which the two directions differ greatly.

    One is sure of one id (narrow), one of nothing (broad). KL(p ‖ q) is large where p is broad and q narrow: the forward KL(p_T ‖ p_S) when
    the student is the narrow one, the reverse KL(p_S ‖ p_T) when the teacher is.
    """
    method = examined.context.method
    declared = method.directions
    if not declared:
        if "teacher" in method.needs:
            detail = f"method {method.label} declares none in `directions`, so they cannot be checked"
            yield Finding("ok", "KL directions", detail)
        return
    narrow, broad = _narrow(), _broad()
    missing, surprised, equal = (
        {name: value.item() for name, value in _terms(method, learner, teacher).items()}
        for learner, teacher in ((narrow, broad), (broad, narrow), (broad, broad))
    )
    for name, direction in declared.items():
        if name not in missing:
            yield Finding(
                "failed", "KL directions", f"`directions` names {name!r}, which is no term: {', '.join(missing)}"
            )
            continue
        measured = "forward" if missing[name] > surprised[name] else "reverse"
        detail = (
            f"{name}: {missing[name]:.3g} nats where the student lacks what the teacher says, {surprised[name]:.3g} where it says "
            f"what the teacher does not, {equal[name]:.3g} where they are equal"
        )
        if missing[name] == surprised[name] == equal[name]:
            yield Finding("failed", "KL directions", f"{detail}: it says the same of all models, so it teaches nothing")
        elif min(missing[name], surprised[name]) < equal[name]:
            yield Finding(
                "failed", "KL directions", f"{detail}: it grows smaller when they differ, which is no divergence"
            )
        elif measured != direction:
            equation = {"forward": "KL(p_T ‖ p_S)", "reverse": "KL(p_S ‖ p_T)"}
            detail += f": that is the {measured} {equation[measured]}, and the method declares the {direction} {equation[direction]}"
            yield Finding(
                "failed", "KL directions", f"{detail}. Swap the arguments of its loss, or its word in `directions`"
            )
        else:
            yield Finding("ok", "KL directions", f"{detail}: {direction}, as declared")


def _narrow() -> Float[Tensor, "1 vocab"]:
    """Small steps below the favourite, so that ranks are defined. Both models know its id, and only this one ranks it first."""
    logits = _broad()
    logits[0, 1] += _PEAK  # not id 0: a softmax of differences for each row says nothing about what both rank first
    return logits


def _broad() -> Float[Tensor, "1 vocab"]:
    return torch.linspace(0.01, 0, _VOCABULARY)[None]


def _terms(method: Method, learner: Float[Tensor, "1 vocab"], teacher: Float[Tensor, "1 vocab"]) -> dict[str, Tensor]:
    """The terms on one answer, and on a sample whose hidden states are the logits themselves."""
    signals = _signals(method, learner, teacher)
    terms = {name: term.values for name, term in method.token_terms(signals.logits()).items()}
    if method.sites:
        sizes = Sizes(width=_VOCABULARY, heads=1, features=_VOCABULARY)
        learned = method.learned(sizes, sizes)
        for module in [] if learned is None else learned.modules():
            if isinstance(module, FeatureWeights):  # nothing has been measured here
                module.measured_as(torch.ones(_VOCABULARY))
        terms |= method.sample_terms(signals, learned)
    return terms


def _signals(method: Method, learner: Float[Tensor, "1 vocab"], teacher: Float[Tensor, "1 vocab"]) -> Signals:
    """The learner as the student, and as what the teacher says about what the student sees."""
    identity, first = Head(torch.eye(_VOCABULARY)), torch.zeros(1, dtype=torch.long)
    student = FromHidden(learner, identity)
    one = torch.ones(1)  # the answer weighs what it weighs without weights
    compared = Compared(FromHidden(teacher, identity), _VOCABULARY, first, student, weights=one, advantage=0 * one)
    inside, of_teacher = (
        {site: [x[None, :, :1] if site.axes == ("queries", "keys") else x] for site in method.sites}
        for x in (learner, teacher)
    )
    activations = Activations(inside, of_teacher, identity, identity, ("known",))
    return Signals(student, first, first, ("known",), {TEACHER: compared}, {TEACHER: activations})
