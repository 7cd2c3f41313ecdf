"""Which chat template a model is asked and taught in, and what it cannot write."""

from collections.abc import Iterator

from switchkd.data.chat_format import ChatFormat
from switchkd.doctor.findings import Finding, Level
from switchkd.doctor.samples import Examined
from switchkd.pairing.reading import OwnInputs


def template(chat: ChatFormat, name: str) -> Finding:
    """A warning where it is not the checkpoint's own."""
    left_out = "".join(f". It cannot write {probe}: {reason}" for probe, reason in chat.refused.items())
    level: Level = "ok" if chat.problem is None else "warning"
    return Finding(level, f"{name}'s chat template", chat.described + left_out)


def templates(examined: Examined) -> Iterator[Finding]:
    """The student's; the teacher's where it has one of its own."""
    context = examined.context
    yield template(context.run.reader.format, "student")
    if context.teacher is not None and isinstance(context.teacher.reading, OwnInputs):
        yield template(context.teacher.reading.reader.format, "teacher")
