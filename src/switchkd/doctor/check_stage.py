"""A stage that trains nothing ends well, too."""

from collections.abc import Iterator

from switchkd.doctor.findings import Finding
from switchkd.train.stage import OpenStage, total_steps


def steps(opened: OpenStage) -> Iterator[Finding]:
    """There is a step to take."""
    count = total_steps(opened)
    yield Finding("ok" if count > 0 else "failed", "steps", f"{count} optimizer steps over {len(opened.rows)} rows")


def trainable(opened: OpenStage) -> Iterator[Finding]:
    """Something learns."""
    student = opened.pair.student
    counts = {
        part: sum(p.numel() for p in student.part_parameters(part).values() if p.requires_grad)
        for part in student.family.parts
    }
    detail = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    yield Finding("ok" if sum(counts.values()) else "failed", "trainable parameters", detail)
