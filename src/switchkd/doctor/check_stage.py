"""A stage that trains nothing ends well, too."""

from collections.abc import Iterator

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.train.stage import total_steps


def steps(examined: Examined) -> Iterator[Finding]:
    """There is a step to take."""
    context, count = examined.context, total_steps(examined.context)
    rows = f"{len(context.rows)} rows" if context.packs is None else str(context.packs)
    yield Finding("ok" if count > 0 else "failed", "steps", f"{count} optimizer steps over {rows}")


def trainable(examined: Examined) -> Iterator[Finding]:
    """Something learns."""
    student = examined.context.pair.student
    counts = {
        part: sum(p.numel() for p in student.part_parameters(part).values() if p.requires_grad)
        for part in student.family.parts
    }
    detail = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    yield Finding("ok" if sum(counts.values()) else "failed", "trainable parameters", detail)
