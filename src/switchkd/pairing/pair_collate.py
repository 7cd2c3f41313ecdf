"""One conversation, two readers: what the student reads, what the teacher reads, and which of their answer tokens are the same."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from switchkd.data.collate import Collator, Encoded
from switchkd.data.errors import SampleError
from switchkd.pairing.alignment import align
from switchkd.types import IGNORE_INDEX, Batch


@dataclass(frozen=True)
class EncodedPair:
    """One row as student and teacher read it. `aligned`: answer tokens of both, by their number in the row, that are compared."""

    student: Encoded
    teacher: Encoded
    aligned: list[tuple[int, int]]

    @property
    def input_ids(self) -> list[int]:
        """Those of the longer side, which decides what fits into memory."""
        return max(self.student.input_ids, self.teacher.input_ids, key=len)

    @property
    def labels(self) -> list[int]:
        """The student's: the cross-entropy is over all of its answer tokens."""
        return self.student.labels

    @property
    def tokens(self) -> int:
        """The length of `input_ids` before truncation, of either side."""
        return len(self.input_ids) + max(side.tokens - len(side.input_ids) for side in (self.student, self.teacher))


class PairCollator:
    """Turns canonical rows into the student's `Batch` with the teacher's inside it: each has its own pixels, template and tokenizer.

    Answers are matched by their index and their text, so nothing before them needs to agree. Where one side's last answer was cut at
    `max_length`, both end at the same token.

    Args:
        student: makes the student's batch.
        teacher: makes the teacher's.
        vocabulary: the shared one: student ids and teacher ids pairwise (`align.match_ids`), or the number of ids of one tokenizer.
            Only tokens that are a pair of it are compared.
    """

    def __init__(self, student: Collator, teacher: Collator, vocabulary: int | tuple[list[int], list[int]]) -> None:
        self.student = student
        self.teacher = teacher
        ids = (range(vocabulary),) * 2 if isinstance(vocabulary, int) else vocabulary
        self._teacher_id = dict(zip(*ids, strict=True))

    @property
    def format(self) -> Any:
        """The student's chat format."""
        return self.student.format

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Encode both sides and pad them on the right."""
        encoded = [self.encode(row) for row in rows]
        batch = self.student.pad([row.student for row in encoded])
        batch["teacher"] = self.teacher.pad([row.teacher for row in encoded])
        aligned, ours, theirs = [], 0, 0
        for row in encoded:
            aligned += [(ours + mine, theirs + other) for mine, other in row.aligned]
            ours, theirs = ours + len(_answers(row.student)), theirs + len(_answers(row.teacher))
        batch["aligned"] = torch.tensor(aligned, dtype=torch.long).reshape(-1, 2)
        return batch

    def encode(self, row: dict[str, Any]) -> EncodedPair:
        """Encode one row for both. Raises `SampleError`, naming the row, if one of them cannot use it or they find other answers in it."""
        student, teacher = _end_together(self.student.encode(row), self.teacher.encode(row))
        ours, theirs = ({cover.answer for cover in side.covers if cover is not None} for side in (student, teacher))
        if ours != theirs:
            raise SampleError(
                f"sample {row['id']!a}: the student's chat template gives {len(ours)} answers and the teacher's {len(theirs)} within "
                f"max_length (answer {min(ours ^ theirs)} for one of them only): they cannot be matched. Raise max_length, or give "
                "both a template that writes the answer as it is"
            )
        mine, others = _answers(student), _answers(teacher)
        aligned = [
            (first, second)
            for first, second in align([student.covers[i] for i in mine], [teacher.covers[i] for i in others])
            if self._teacher_id.get(student.labels[mine[first]]) == teacher.labels[others[second]]
        ]
        return EncodedPair(student, teacher, sorted(aligned))

    def aligned_share(self, rows: Iterable[dict[str, Any]], *, limit: int = 256) -> float:
        """The share of the student's answer tokens that are compared, over the first `limit` rows."""
        compared = total = 0
        for row in islice(rows, limit):
            encoded = self.encode(row)
            compared, total = compared + len(encoded.aligned), total + len(_answers(encoded.student))
        return compared / total


def _answers(encoded: Encoded) -> list[int]:
    """Where the answer tokens are, in the order of `types.answer_targets`: the first token of a row is never one."""
    return [index for index, label in enumerate(encoded.labels) if index and label != IGNORE_INDEX]


def _end_together(*sides: Encoded) -> list[Encoded]:
    """Take from each side the answer tokens that another could not read: they stay, as no answer."""
    if all(len(side.input_ids) == side.tokens for side in sides):
        return list(sides)
    reached = min(max(((c.answer, c.end) for c in side.covers if c), default=(0, 0)) for side in sides)
    return [_until(side, reached) for side in sides]


def _until(side: Encoded, reached: tuple[int, int]) -> Encoded:
    beyond = [cover is not None and (cover.answer, cover.end) > reached for cover in side.covers]
    if True not in beyond:
        return side
    first = beyond.index(True)
    return replace(
        side,
        labels=side.labels[:first] + [IGNORE_INDEX] * (len(side.labels) - first),
        covers=side.covers[:first] + [None] * (len(side.covers) - first),
    )
