"""A stage that trains nothing ends well, too."""

from collections.abc import Iterator

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.train.stage import total_steps


def steps(examined: Examined) -> Iterator[Finding]:
    """There is a step to take."""
    context, count = examined.context, total_steps(examined.context)
    looked = "" if context.stream is None else f", of which the first {len(context.rows)} rows are examined here"
    yield Finding("ok" if count > 0 else "failed", "steps", f"{count} optimizer steps over {context.told_rows}{looked}")


def trainable(examined: Examined) -> Iterator[Finding]:
    """Something learns."""
    student = examined.context.pair.student
    counts = {
        part: sum(p.numel() for p in student.part_parameters(part).values() if p.requires_grad)
        for part in student.family.parts
    }
    detail = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    yield Finding("ok" if sum(counts.values()) else "failed", "trainable parameters", detail)
