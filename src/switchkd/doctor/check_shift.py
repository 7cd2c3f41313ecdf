"""Whether the logits at a position score the token that follows, found out without knowing what is right."""

from collections.abc import Iterator

import torch

from switchkd.batch import Inputs
from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined, Model

#: Of the effect of the token before: what rounding may move.
_ROUNDING = 1e-2


def scored_tokens(examined: Examined) -> Iterator[Finding]:
    """The last answer token is scored by a state that has read the token before it, and not the token itself.

    Holds for every model, trained or not: off by one to the left, the state knows the token that it scores; to the right, it has not
    read the one before.
    """
    for model in examined.models(examined.batch([examined.shortest])):
        yield _scored_token(examined, model)


@torch.no_grad()
def _scored_token(examined: Examined, model: Model) -> Finding:
    name, pathway, inputs = model
    scored = int(inputs.predicts[-1]) + 1
    training = pathway.training
    pathway.eval()
    with examined.autocast():
        features = pathway.see(inputs)
        own, without_it, without_last = (
            pathway.say(features, other)[-1].float()
            for other in (inputs, _with_another(inputs, scored), _with_another(inputs, scored - 1))
        )
    pathway.train(training)
    leak, effect = ((own - other).abs().max().item() for other in (without_it, without_last))
    detail = f"changing the last answer token moves its own score's hidden state by {leak:.2g}, changing the token before by {effect:.2g}"
    if leak > _ROUNDING * effect and leak > 0:
        return Finding("failed", f"{name}'s shift", f"{detail}: the state has read the token that it is to predict")
    if effect == 0:
        return Finding(
            "failed", f"{name}'s shift", f"{detail}: the state has not read up to the token that it is to predict"
        )
    return Finding("ok", f"{name}'s shift", detail)


def _with_another(inputs: Inputs, position: int) -> Inputs:
    """The inputs of one sample with another token of its answers at `position`."""
    tokens = inputs.tokens.clone()
    others = inputs.targets[inputs.targets != tokens[0, position]]
    tokens[0, position] = others[0] if len(others) else (tokens[0, position] ^ 1)
    return inputs._replace(tokens=tokens)
