"""Held-out rows are none of those that are trained on."""

from collections.abc import Iterator

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.train.held_out import count_shared


def held_out(examined: Examined) -> Iterator[Finding]:
    """Their number, and a warning where training rows have the same messages and pictures."""
    held_out = examined.context.held_out
    if held_out is None:
        yield Finding("ok", "held-out rows", "there are none: data.validation names rows to measure while it trains")
        return
    shared, first = count_shared(examined.context.rows, held_out.rows)
    count = f"{len(held_out.rows):,} held-out rows, {len(held_out.questions)} of their questions are asked"
    if not shared:
        yield Finding("ok", "held-out rows", f"{count}; none is among the training rows")
        return
    named = ", ".join(map(ascii, first)) + (" …" if shared > len(first) else "")
    yield Finding(
        "warning",
        "held-out rows",
        f"{count}; {shared:,} of them ({named}) are among the training rows, with the same messages and pictures: what is measured on "
        "these says nothing about new ones. Take them out of data.validation or of data.train",
    )
