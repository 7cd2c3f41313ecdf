"""What compares what the encoders see, and teaches nothing, costs up to three times the step and says nothing."""

from collections.abc import Iterator

import torch
from torch import Tensor

from switchkd.batch import TEACHER
from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.methods.method import Need
from switchkd.models.capture import Site, Switched, Vision, learned_by_vision_alone
from switchkd.signals import Signals


def alive(examined: Examined) -> Iterator[Finding]:
    """The gradient of the switch, of a part of it and of V_S(x) reaches the student's vision encoder, and there is something to learn."""
    needs, pair = examined.context.method.needs, examined.context.pair
    crossing = sorted((need for need in needs if learned_by_vision_alone([need])), key=_title)
    if not crossing or not (examined.has_images or examined.has_videos):  # the check of images says that there are none
        return
    vision = [p for p in pair.student.part_parameters("vision").values() if p.requires_grad]
    if not vision:
        detail = (
            "the student's vision encoder is frozen, and this trains nothing else: add vision to the stage's `train`"
        )
        yield from (Finding("failed", _title(need), detail) for need in crossing)
        return
    training = pair.training
    pair.eval()
    with torch.enable_grad():
        with examined.autocast():
            signals = pair(examined.batch([examined.shortest]))
        for need in crossing:
            student_x, teacher_x = _compared(signals, need)
            grads = torch.autograd.grad(student_x.square().mean(), vision, retain_graph=True, allow_unused=True)
            yield _finding(
                need, (student_x - teacher_x).abs().max().item(), [grad for grad in grads if grad is not None]
            )
    pair.train(training)


def _compared(signals: Signals, need: Need) -> tuple[Tensor, Tensor]:
    """What is compared on a row: the student's, and the teacher's."""
    if need == "switch":
        parts = [part.logits().compared[TEACHER] for part in signals.parts()]
        pairs = [(part.of("switch"), part.teacher) for part in parts]
    else:
        assert isinstance(need, Site)
        pairs = signals.activations[TEACHER].pairs(need)
    student_x, teacher_x = (torch.cat([one.flatten().float() for one in side]) for side in zip(*pairs, strict=True))
    return student_x, teacher_x.detach()


def _title(need: Need) -> str:
    return "features" if isinstance(need, Vision) else "switch"


def _finding(need: Need, gap: float, grads: list[Tensor]) -> Finding:
    norm = torch.stack([grad.float().norm() for grad in grads] or [torch.zeros(())]).norm().item()
    if isinstance(need, Vision):
        compared, passed, held = "|V_S(x) − V_T(x)|", "the bridge, or V_S itself, passes nothing on", "the term"
    else:
        after = "P_T" if need == Switched(0) else f"layer {need.layers}" if isinstance(need, Switched) else ""
        compared = f"difference of states after {after}" if after else "|z_SW − z_T|"
        passed, held = "the teacher's projector passes nothing on", "the switch's term"
    detail = f"{compared} up to {gap:.3g}; its gradient in the student's vision encoder has norm {norm:.3g}"
    if not 0 < norm < float("inf"):
        return Finding("failed", _title(need), f"{detail}: nothing reaches V_S, {passed}")
    if gap == 0:
        why = f"V_S is V_T, so {held} and gradient are 0 until V_S moves: it can only hold it in place"
        return Finding("warning", _title(need), f"{detail}: {why}")
    return Finding("ok", _title(need), detail)
