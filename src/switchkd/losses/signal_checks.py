"""What the fused loss asks of signals: hidden states, heads and targets that belong together, and a teacher that is fixed."""

from switchkd.losses.checks import check_answers, check_at_least_two
from switchkd.losses.projection import check_head
from switchkd.signals import FromHidden, Signals


def check_signals(signals: Signals, chunk: int | None) -> None:
    """Refuse what does not fit.

    Raises:
        ValueError, TypeError: as `fused_loss` says.
    """
    hidden, head = signals.student.hidden, signals.student.head
    check_head("the student's head", head, hidden)
    check_answers(signals.targets, [len(hidden)], head.rows)
    for name, one in signals.compared.items():
        check_at_least_two("vocabulary", one.vocabulary)
        tokens = len(hidden) if one.answers is None else len(one.answers)
        shared = head.rows
        for route, logits in ((name, one.teacher), ("switch", one.switch)):
            if isinstance(logits, FromHidden):
                check_head(f"the teacher's head, for the {route},", logits.head, logits.hidden)
                shared = min(shared, logits.head.rows) if one.ids is None else logits.head.rows
            if logits is not None and len(logits) != tokens:
                raise ValueError(
                    f"every pathway must have the tokens that are compared: {tokens} of the student's {len(hidden)}, but {route} has "
                    f"{len(logits)}"
                )
        if isinstance(one.teacher, FromHidden) and any(
            x is not None and x.requires_grad
            for x in (one.teacher.hidden, one.teacher.head.weight, one.teacher.head.bias)
        ):
            raise ValueError(
                "the teacher's hidden states or its head require grad, but the teacher is a constant: freeze it with "
                "requires_grad_(False) and run it under torch.no_grad()"
            )
        if one.vocabulary > shared:
            raise ValueError(f"vocabulary is {one.vocabulary}, but the heads share {shared} rows only")
        if one.ids is not None and len(one.ids) != one.vocabulary:
            raise ValueError(f"{len(one.ids)} of the student's ids are given for {one.vocabulary} of the teacher's")
        if len(one.targets) != tokens:
            raise ValueError(f"{len(one.targets)} targets are given for {tokens} answers that are compared with {name}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
