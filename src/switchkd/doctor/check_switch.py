"""A switch that teaches nothing costs three times the step and says nothing."""

from collections.abc import Iterator

import torch

from switchkd.batch import TEACHER
from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined


def alive(examined: Examined) -> Iterator[Finding]:
    """The switch's gradient reaches the student's vision encoder, and z_SW is not z_T already."""
    if "switch" not in examined.context.method.needs:
        return
    pair = examined.context.pair
    vision = [p for p in pair.student.part_parameters("vision").values() if p.requires_grad]
    if not vision:
        detail = "the student's vision encoder is frozen, and the switch trains nothing else: add vision to the stage's `train`"
        yield Finding("failed", "switch", detail)
        return
    training = pair.training
    pair.eval()
    with torch.enable_grad():
        with examined.autocast():
            parts = pair(examined.batch([examined.shortest])).parts()
        compared = [part.logits().compared[TEACHER] for part in parts]
        switch = torch.cat([one.of("switch").flatten() for one in compared])
        grads = torch.autograd.grad(switch.square().mean(), vision, allow_unused=True)
    pair.train(training)
    norm = torch.stack([grad.float().norm() for grad in grads if grad is not None] or [torch.zeros(())]).norm().item()
    with torch.no_grad():
        gap = (switch - torch.cat([one.teacher.flatten() for one in compared])).abs().max().item()
    detail = f"|z_SW − z_T| up to {gap:.3g}; its gradient in the student's vision encoder has norm {norm:.3g}"
    if not 0 < norm < float("inf"):
        yield Finding("failed", "switch", f"{detail}: nothing reaches V_S, the teacher's projector passes nothing on")
    elif gap == 0:
        why = "V_S is V_T, so the switch's term and gradient are 0 until V_S moves: it can only hold it in place"
        yield Finding("warning", "switch", f"{detail}: {why}")
    else:
        yield Finding("ok", "switch", detail)
