"""Whether the logits at a position score the token that follows, found out without knowing what is right."""

from collections.abc import Iterator

import torch

from switchkd.doctor.findings import Finding
from switchkd.doctor.looked_at import Reader, autocast, collate, readers, some_rows
from switchkd.train.stage import OpenStage
from switchkd.types import IGNORE_INDEX, Batch

#: Of the effect of the token before: what rounding may move.
_ROUNDING = 1e-2


def scored_tokens(opened: OpenStage) -> Iterator[Finding]:
    """The last answer token is scored by a state that has read the token before it, and not the token itself.

    Holds for every model, trained or not: off by one to the left, the state knows the token that it scores; to the right, it has not
    read the one before.
    """
    row = min(some_rows(opened), key=lambda row: row["length"])
    for reader in readers(opened, collate(opened, [row])):
        yield _scored_token(opened, reader)


@torch.no_grad()
def _scored_token(opened: OpenStage, reader: Reader) -> Finding:
    name, pathway, batch = reader
    labels = batch["labels"][0]
    scored = int((labels != IGNORE_INDEX).nonzero()[-1])
    training = pathway.training
    pathway.eval()
    with autocast(opened):
        features = pathway.see(batch)
        own, without_it, without_last = (
            pathway.say(features, other)[-1].float()
            for other in (batch, _with_another(batch, scored), _with_another(batch, scored - 1))
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


def _with_another(batch: Batch, position: int) -> Batch:
    """The batch with another token of the row's text at `position`, and the same labels."""
    ids = batch["input_ids"].clone()
    text = ids[0][batch["labels"][0] != IGNORE_INDEX]
    others = text[text != ids[0, position]]
    ids[0, position] = others[0] if len(others) else (ids[0, position] ^ 1)
    return Batch(**{**batch, "input_ids": ids})
