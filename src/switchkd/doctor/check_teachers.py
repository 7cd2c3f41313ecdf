"""Several teachers of which each row names one: a name that no row has is a mistake that costs memory and says nothing."""

from collections import Counter
from collections.abc import Iterator

from switchkd.doctor.findings import Finding
from switchkd.doctor.samples import Examined


def teachers(examined: Examined) -> Iterator[Finding]:
    """How many rows each of them teaches, and a warning for one that teaches none."""
    context = examined.context
    counts = Counter(context.rows["teacher"][:])
    looked = "" if context.stream is None else "of the first rows of the stream, "
    told = ", ".join(f"{tag} teaches {counts[tag]:,}" for tag in context.step.pairs)
    detail = f"{looked}{told} of {len(context.rows):,} rows"
    idle = [tag for tag in context.step.pairs if not counts[tag]]
    if idle:
        detail += (
            f". No row is taught by {', '.join(idle)}, whose weights lie in memory all the same: look at the names that rows have in their "
            "field `teacher`, and at data.train, or take it out of `teachers`"
        )
    yield Finding("warning" if idle else "ok", "teachers", detail)
