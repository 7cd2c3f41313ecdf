"""How a teacher reads what its student reads: the same inputs, or its own pixels and text with the answers aligned."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from switchkd.data.collate import Reading
from switchkd.data.errors import SampleError
from switchkd.data.reader import Encoded, Reader
from switchkd.pairing.alignment import align
from switchkd.pairing.vocabulary import Ids


@dataclass(frozen=True)
class SameInputs:
    """The teacher reads what the student reads: one processor, tokenizer and template serves both.

    Args:
        vocabulary: the number of real ids, which are those that are compared.
    """

    vocabulary: int

    @property
    def reader(self) -> None:
        """The student's."""
        return

    @property
    def compared_ids(self) -> str:
        """How many ids are compared, in words."""
        return f"{self.vocabulary} ids"

    @property
    def fingerprint(self) -> str:
        """See `Teacher`."""
        return f"same inputs, {self.compared_ids}"

    def read(self, row: dict[str, Any], student: Encoded) -> Reading:
        """Every answer token is compared."""
        ids = [student.tokens[place] for place in student.answers]
        columns = [token if token < self.vocabulary else -1 for token in ids]
        return Reading(student, None, [(number, number) for number in range(len(ids))], columns)


class OwnInputs:
    """The teacher has its own pixels, template and tokenizer.

    Answers are matched by their index and their text, so nothing before them needs to agree. Where one side's last answer was cut at
    `max_length`, both end at the same token.

    Args:
        reader: the teacher's.
        vocabulary: the shared one: student ids and teacher ids pairwise (`alignment.match_ids`), or the number of ids of one tokenizer.
            Only tokens that are a pair of it are compared.
        first_words: further pairs, for tokens of which one has the space before the word in it and the other has not, as the first words
            of answers do (`match_ids` with `spaced`); None where there are none.
    """

    def __init__(self, reader: Reader, vocabulary: int | Ids, first_words: Ids | None = None) -> None:
        self.reader = reader
        whole = (range(vocabulary),) * 2 if isinstance(vocabulary, int) else vocabulary
        self._same, self._first_words = (dict(zip(*ids, strict=True)) for ids in (whole, first_words or ([], [])))
        self._columns, self._first_columns = (
            {token: column for column, token in enumerate(ids)} for ids in (self._same, self._first_words)
        )

    @property
    def compared_ids(self) -> str:
        """A digest of the pairs of ids that are compared."""
        pairs = list(self._same.items()), list(self._first_words.items())
        return hashlib.blake2b(repr(pairs).encode(), digest_size=16).hexdigest()

    @property
    def fingerprint(self) -> str:
        """See `Teacher`."""
        return f"{self.reader.fingerprint}, {self.compared_ids}"

    def read(self, row: dict[str, Any], student: Encoded) -> Reading:
        """Encode the row for the teacher, and align the answers of both."""
        student, teacher = _end_together(student, self.reader.encode(row))
        indices = [{cover.answer for cover in side.covers if cover is not None} for side in (student, teacher)]
        if indices[0] != indices[1]:
            raise SampleError(
                f"sample {row['id']!a}: the student's chat template gives {len(indices[0])} answers and the teacher's {len(indices[1])} "
                f"within max_length (answer {min(indices[0] ^ indices[1])} for one of them only): they cannot be matched. Raise "
                "max_length, or give both a template that writes the answer as it is"
            )
        covers = [[side.covers[place] for place in side.answers] for side in (student, teacher)]
        compared, columns, first_words = [], [], set()
        for first, second in sorted(align(*covers)):
            token, teacher_token = student.tokens[student.answers[first]], teacher.tokens[teacher.answers[second]]
            if self._same.get(token) == teacher_token:
                columns.append(self._columns[token])
            elif self._first_words.get(token) == teacher_token:
                columns.append(self._first_columns[token])
                first_words.add(first)
            else:
                continue
            compared.append((first, second))
        return Reading(student, teacher, compared, columns, frozenset(first_words))


def _end_together(*sides: Encoded) -> list[Encoded]:
    """Take from each side the answer tokens that another could not read: they stay, as no answer."""
    if all(len(side.tokens) == side.whole_length for side in sides):
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
        answers=[place for place in side.answers if place < first],
        covers=side.covers[:first] + [None] * (len(side.covers) - first),
    )
