"""A switch that teaches nothing costs three times the step and says nothing."""

from collections.abc import Iterator

import torch

from switchkd.doctor.findings import Finding
from switchkd.doctor.looked_at import autocast, collate, rows_with_images
from switchkd.train.stage import OpenStage


def alive(opened: OpenStage) -> Iterator[Finding]:
    """The switch's gradient reaches the student's vision encoder, and z_SW is not z_T already."""
    if "switch" not in opened.method.needs:
        return
    pair = opened.pair
    rows = rows_with_images(opened)
    vision = [p for p in pair.student.part_parameters("vision").values() if p.requires_grad]
    if not vision:
        yield Finding(
            "failed",
            "switch",
            "the student's vision encoder is frozen, and the switch trains nothing else: unfreeze it",
        )
        return
    training = pair.training
    pair.eval()
    with torch.enable_grad():
        with autocast(opened):
            routes = pair(collate(opened, [min(rows, key=lambda row: row["length"])]), opened.method.needs)
        grads = torch.autograd.grad(routes["switch"].square().mean(), vision, allow_unused=True)
    pair.train(training)
    norm = torch.stack([grad.float().norm() for grad in grads if grad is not None] or [torch.zeros(())]).norm().item()
    with torch.no_grad():
        apart = (routes["switch"] - routes["teacher"]).abs().max().item()
    detail = f"|z_SW − z_T| up to {apart:.3g}; its gradient in the student's vision encoder has norm {norm:.3g}"
    if not 0 < norm < float("inf"):
        yield Finding("failed", "switch", f"{detail}: nothing reaches V_S, the teacher's projector passes nothing on")
    elif apart == 0:
        why = "V_S is V_T, so the switch's term and gradient are 0 until V_S moves: it can only hold it in place"
        yield Finding("warning", "switch", f"{detail}: {why}")
    else:
        yield Finding("ok", "switch", detail)
