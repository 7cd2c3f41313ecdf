"""Canonical rows of which each is taught by one of several teachers -> batches: the samples of each teacher are a batch of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset

from switchkd.batch import TaggedBatch
from switchkd.data.collate import Collator, EncodedSample, digest
from switchkd.data.errors import SampleError
from switchkd.data.index import Measured


class TaggedCollator:
    """Turns canonical rows into a `TaggedBatch`. Picklable, as a `Collator` is.

    Args:
        collators: tag → what makes the batches that this teacher teaches.
        spares: tag → a row that is read where a batch has none of that tag, and not learned from. Processes over which weights are spread
            must all run all models; elsewhere there are none.
    """

    def __init__(self, collators: Mapping[str, Collator], spares: Mapping[str, Any] | None = None) -> None:
        self.collators = dict(collators)
        self.spares = dict(spares or {})

    @property
    def fingerprint(self) -> str:
        """Digest of all that a batch depends on besides its rows."""
        return digest({tag: collator.fingerprint for tag, collator in self.collators.items()})

    def fingerprint_of(self, row: dict[str, Any]) -> str:
        """That of the collator of the row's teacher: the row has the key that it has where this one teaches all rows."""
        collator = self.collators.get(row["teacher"] or "")
        return self.fingerprint if collator is None else collator.fingerprint

    def __call__(self, rows: list[dict[str, Any]]) -> TaggedBatch:
        """Encode and join. Raises as a `Collator`, and `SampleError` for a row that names no teacher, or none that there is."""
        return self.join([self.encode(row) for row in rows])

    def encode(self, row: dict[str, Any]) -> EncodedSample:
        """Encode one row for the student and for its teacher. Raises as `__call__`."""
        tag = self._tag(row)
        return replace(self.collators[tag].encode(row), tag=tag)

    def measure(self, row: dict[str, Any]) -> Measured:
        """The sizes of one row. Raises as `__call__`."""
        return self.collators[self._tag(row)].measure(row)

    def join(self, samples: list[EncodedSample], packs: Sequence[int] | None = None) -> TaggedBatch:
        """One batch of encoded samples: one in each row, or as many as `packs` says; those of another teacher are in rows of their own."""
        rows = range(len(samples)) if packs is None else [row for row, count in enumerate(packs) for _ in range(count)]
        parts = {}
        for tag, collator in self.collators.items():
            own = [(row, sample) for row, sample in zip(rows, samples, strict=True) if sample.tag == tag]
            if own:
                counts = dict.fromkeys((row for row, _ in own), 0)
                for row, _ in own:
                    counts[row] += 1
                parts[tag] = collator.join(
                    [sample for _, sample in own], None if packs is None else list(counts.values())
                )
            elif tag in self.spares:
                spare = collator.encode(self.spares[tag])
                parts[tag] = collator.join([spare], None if packs is None else [1]).without_answers()
        return TaggedBatch(parts)

    def _tag(self, row: dict[str, Any]) -> str:
        if row.get("problem"):
            raise SampleError(row["problem"])
        tag = row["teacher"]
        if tag in self.collators:
            found: str = tag
            return found
        said = "names no teacher" if tag is None else f"is to be taught by {tag!a}"
        raise SampleError(
            f"{row['source']} (id {row['id']!a}): {said}, and the recipe has the teachers {', '.join(self.collators)}: give the row one of "
            "these as its `teacher`, or its file in data.train: {path: …, teacher: …}"
        )


def taught_by(rows: Dataset, tag: str) -> Dataset:
    """Those of them that this one teaches."""
    numbers = [number for number, name in enumerate(rows["teacher"][:]) if name == tag]
    return rows if len(numbers) == len(rows) else rows.select(numbers)


#: What makes batches of rows.
AnyCollator = Collator | TaggedCollator
