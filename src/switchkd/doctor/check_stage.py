"""A stage that trains nothing ends well, too."""

from collections.abc import Iterator

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined
from switchkd.train.stage import total_steps


def steps(examined: Examined) -> Iterator[Finding]:
    """There is a step to take."""
    count = total_steps(examined.context)
    yield Finding(
        "ok" if count > 0 else "failed", "steps", f"{count} optimizer steps over {len(examined.context.rows)} rows"
    )


def trainable(examined: Examined) -> Iterator[Finding]:
    """Something learns."""
    student = examined.context.pair.student
    counts = {
        part: sum(p.numel() for p in student.part_parameters(part).values() if p.requires_grad)
        for part in student.family.parts
    }
    detail = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    yield Finding("ok" if sum(counts.values()) else "failed", "trainable parameters", detail)
