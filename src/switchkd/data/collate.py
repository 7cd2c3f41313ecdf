"""Canonical rows -> batches: each sample as the student and as each teacher reads it, by one road whether they read alike or not."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch

from switchkd.batch import TEACHER, Aligned, Batch, Stored
from switchkd.data.index import Measured
from switchkd.data.reader import Encoded, Reader
from switchkd.data.row_videos import videos_of
from switchkd.data.stored_answers import joined, part_of
from switchkd.data.teacher_store import TeacherStore


@dataclass(frozen=True)
class Reading:
    """One sample as a student and one of its teachers read it."""

    #: The student's, without answers that the teacher could not read to their end.
    student: Encoded
    #: The teacher's; None: the student's own.
    teacher: Encoded | None
    #: Of the student's and of the teacher's answer tokens, by their number in the sample: those that are compared.
    compared: list[tuple[int, int]]
    #: What they are among the ids that are compared; -1 for one that is not among them.
    columns: list[int]
    #: Which of the student's have a space before the word that the teacher's have not, or lack one that they have: their ids are others.
    first_words: frozenset[int] = frozenset()


@runtime_checkable
class Teacher(Protocol):
    """How a teacher reads what the student reads: `pairing.reading` has the two ways."""

    @property
    def reader(self) -> Reader | None:
        """The teacher's own; None where it reads what the student reads."""

    @property
    def fingerprint(self) -> str:
        """Digest of all that a reading depends on, besides the row and the student's reader."""

    def read(self, row: dict[str, Any], student: Encoded) -> Reading:
        """Read one row. Raises `SampleError`, naming the row, if the two do not find the same answers in it."""


@dataclass(frozen=True)
class EncodedSample:
    """One row as every model reads it."""

    key: str
    student: Encoded
    teachers: dict[str, Reading]
    #: Which of several teachers teaches it, where each row names one.
    tag: str = TEACHER
    #: Whether the student wrote its answer itself.
    written: bool = False


class Collator:
    """Turns canonical rows (`formats.FEATURES`) into a `Batch`. Picklable, so that `DataLoader` workers can run it.

    Args:
        student: reads what the student reads.
        teachers: by name, how they read it.
        stores: by name, the caches that have what they say; of one that has none, the pair asks the teacher.
    """

    def __init__(
        self,
        student: Reader,
        teachers: Mapping[str, Teacher] | None = None,
        stores: Mapping[str, TeacherStore] | None = None,
    ) -> None:
        self.student = student
        self.teachers = dict(teachers or {})
        self.stores = dict(stores or {})

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that a batch depends on besides its rows."""
        parts = {name: teacher.fingerprint for name, teacher in self.teachers.items()}
        return digest([self.student.fingerprint, parts])

    def fingerprint_of(self, row: dict[str, Any]) -> str:
        """The same for every row."""
        return self.fingerprint

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Encode and join.

        Raises:
            SampleError: naming the row, for one that cannot be used (`index.build_index` finds those before training).
        """
        return self.join([self.encode(row) for row in rows])

    def join(self, samples: list[EncodedSample], packs: Sequence[int] | None = None) -> Batch:
        """One batch of encoded samples: one in each row, or as many as `packs` says."""
        student = self.student.inputs([sample.student for sample in samples], packs)
        readers, shared, first_words = {}, {}, {}
        for name, teacher in self.teachers.items():
            readings = [sample.teachers[name] for sample in samples]
            own = [reading.teacher for reading in readings if reading.teacher is not None]
            readers[name] = student if teacher.reader is None else teacher.reader.inputs(own, packs)
            store = self.stores.get(name)
            stored = [] if store is None else [store.read(sample.key) for sample in samples]
            shared[name] = _aligned(readings, stored, first_words=False)
            if any(reading.first_words for reading in readings):
                first_words[name] = _aligned(readings, stored, first_words=True)
        written = [sample.written for sample in samples]
        batch = Batch(tuple(sample.key for sample in samples), student, readers, shared, first_words)
        return batch._replace(written=torch.tensor(written)) if any(written) else batch

    def encode(self, row: dict[str, Any]) -> EncodedSample:
        """Encode one row for every model. Raises as `__call__`."""
        student, readings = self.student.encode(row), {}
        for name, teacher in self.teachers.items():
            readings[name] = teacher.read(row, student)
            student = readings[name].student
        # rows of an index bring their key
        key = row.get("key") or f"{row['id']}@{digest([row['messages'], _shown(row), self.fingerprint])}"
        return EncodedSample(key, student, readings)

    def measure(self, row: dict[str, Any]) -> Measured:
        """The sizes of one row. Raises as `__call__`."""
        sample = self.encode(row)
        encoded = [sample.student, *(r.teacher for r in sample.teachers.values() if r.teacher is not None)]
        every = range(len(sample.student.answers))
        compared: Collection[int] = min(
            ([first for first, _ in reading.compared] for reading in sample.teachers.values()), key=len, default=every
        )
        length = max(len(side.tokens) for side in encoded)
        lost = max(side.whole_length - len(side.tokens) for side in encoded)
        by_words = _by_words(row, sample.student)
        return Measured(
            length=length,
            answers=len(every),
            compared=len(compared),
            tokens=length + lost,
            answers_by_words=[by_words.count(kind) for kind in range(3)],
            compared_by_words=[[by_words[number] for number in compared].count(kind) for kind in range(3)],
        )


def _shown(row: dict[str, Any]) -> str:
    return str([row["images"], *videos_of(row)] if videos_of(row) else row["images"])


def _by_words(row: dict[str, Any], student: Encoded) -> list[int]:
    """For each answer token, whether its answer has one word (0), 2 to 4 (1) or more (2)."""
    said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    words = [sum(len((part["text"] or "").split()) for part in content) for content in said]
    answer, kinds = len(said) - 1, []
    for place in reversed(student.answers):  # a token of spaces alone belongs to the word behind it
        cover = student.covers[place]
        answer = answer if cover is None else cover.answer
        kinds.append(0 if words[answer] < 2 else 1 if words[answer] < 5 else 2)
    return kinds[::-1]


def _aligned(readings: list[Reading], stored: list[Stored], *, first_words: bool) -> Aligned:
    """Which answers of the whole batch are compared: first words, or all others; with what a cache has of them."""
    student, teacher, columns, answers, reader_answers = [], [], [], 0, 0
    for reading in readings:
        for (first, second), column in zip(reading.compared, reading.columns, strict=True):
            if (first in reading.first_words) == first_words:
                student.append(answers + first)
                teacher.append(reader_answers + second)
                columns.append(column)
        answers += len(reading.student.answers)
        reader_answers += len((reading.teacher or reading.student).answers)
    targets = torch.tensor(columns, dtype=torch.long)
    places = _places(student, answers)
    on_host = None if places is None else places.numpy().copy()
    of_these = [
        _of(one, reading, first_words=first_words) for one, reading in zip(stored, readings, strict=bool(stored))
    ]
    return Aligned(places, _places(teacher, reader_answers), targets, on_host, joined(of_these))


def _of(stored: Stored, reading: Reading, *, first_words: bool) -> Stored:
    """What a cache has of the first words of one sample, which stand last there, or of its other answers."""
    others = len(reading.compared) - len(reading.first_words)
    return part_of(stored, slice(others, None) if first_words else slice(others))


def _places(places: list[int], answers: int) -> torch.Tensor | None:
    return None if places == list(range(answers)) else torch.tensor(places, dtype=torch.long)


def digest(content: Any) -> str:
    """A short digest of plain values."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
