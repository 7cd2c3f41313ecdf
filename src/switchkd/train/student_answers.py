"""Before a step, the student answers some of its rows anew: the rows that it writes are read by every model as those of the data are."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

from transformers import LogitsProcessorList, PreTrainedModel

from switchkd.batch import AnyBatch
from switchkd.data.collate import EncodedSample
from switchkd.data.errors import SampleError
from switchkd.data.reader import Encoded, Reader
from switchkd.data.rewriting import Row, before, said
from switchkd.data.tagged import AnyCollator
from switchkd.evaluate.generate import Answer, answers
from switchkd.evaluate.seeded_choice import SeededChoice
from switchkd.recipe.on_policy import OnPolicy

_log = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """The rows of a batch and how every model reads them, before they are joined."""

    rows: list[Row]
    samples: list[EncodedSample]
    #: Whether anything is learned from them: not where they only fill up the batch of a rank.
    learned: bool = True

    def without_answers(self) -> "Drawn":
        """See `Batch.without_answers`."""
        return self._replace(learned=False)


class Unjoined:
    """Encodes the rows of a batch and keeps them. Picklable, as the collator is."""

    def __init__(self, collator: AnyCollator) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> Drawn:
        """Raises as the collator."""
        return Drawn(rows, [self.collator.encode(row) for row in rows])


@runtime_checkable
class Writer(Protocol):
    """Whoever writes answers: the student that is trained."""

    def __call__(self, prompts: list[Row], seeds: list[int]) -> list[Answer]:
        """An answer to each, whose last message is the user's. The seed of each decides what is drawn."""


@dataclass(frozen=True)
class StudentWriter:
    """The student as it is now."""

    model: PreTrainedModel
    reader: Reader
    settings: OnPolicy

    def __call__(self, prompts: list[Row], seeds: list[int]) -> list[Answer]:
        """See `Writer`. No dropout, no gradient, with a KV cache."""
        choice = SeededChoice(seeds, temperature=self.settings.temperature, ids=self.reader.ids)
        return answers(
            self.model,
            self.reader.processor,
            prompts,
            max_new_tokens=self.settings.max_new_tokens,
            read=self.reader,
            choose=LogitsProcessorList([choice]),
        )


class StudentAnswers:
    """Joins batches in which the student has answered its share of the rows.

    Which rows, which of their turns and what is drawn depend on the seed, the step and the row alone: it is the same after a resume, and
    on however many ranks a batch is spread.

    Args:
        settings: the recipe's.
        collator: of the stage.
        write: who answers.
        seed: of the run.
    """

    def __init__(self, settings: OnPolicy, collator: AnyCollator, write: Writer, *, seed: int) -> None:
        self.settings = settings
        self.collator = collator
        self.write = write
        self.seed = seed
        #: What happened since `taken` was called: rows, written, asked, empty, unfinished, unusable.
        self._counts: Counter[str] = Counter()
        self._seconds = 0.0

    def join(self, drawn: Drawn, step: int) -> AnyBatch:
        """The batch of these rows in this step."""
        if not drawn.learned:
            return self.collator.join(drawn.samples).without_answers()
        chosen: dict[int, tuple[Row, int]] = {}
        seeds = []
        for number, (row, sample) in enumerate(zip(drawn.rows, drawn.samples, strict=True)):
            digest = hashlib.blake2b(f"{self.seed} {step} {sample.key}".encode(errors="surrogatepass"), digest_size=24)
            draws = [int.from_bytes(digest.digest()[begin : begin + 8], "big") for begin in (0, 8, 16)]
            turns = answered_turns(row, sample.student)
            if turns and draws[0] < self.settings.share * 2**64:
                chosen[number] = row, turns[draws[1] % len(turns)]
                seeds.append(draws[2] >> 1)
        self._counts["rows"] += len(drawn.rows)
        samples = list(drawn.samples)
        begin = time.perf_counter()
        given = self.write([before(row, turn) for row, turn in chosen.values()], seeds) if chosen else []
        self._seconds += time.perf_counter() - begin
        for (number, (row, turn)), answer in zip(chosen.items(), given, strict=True):
            self._counts["asked"] += 1
            if not answer.text:
                self._counts["empty"] += 1
                continue
            try:
                samples[number] = replace(self.collator.encode(answered(row, turn, answer.text)), written=True)
            except SampleError as error:  # such as a text that the teacher's template cannot write
                self._counts["unusable"] += 1
                _log.debug("an answer of the student cannot be learned from: %s", error)
                continue
            self._counts["unfinished"] += answer.truncated
        self._counts["written"] += sum(sample.written for sample in samples)
        return self.collator.join(samples)

    def taken(self) -> tuple[dict[str, tuple[float, float]], float]:
        """What has happened since the last time, as (part, whole), and the seconds that the writing took."""
        counts, seconds = self._counts, self._seconds
        self._counts, self._seconds = Counter(), 0.0
        shares = {"on_policy_rows": (counts["written"], counts["rows"])}
        shares |= {f"on_policy_{name}": (counts[name], counts["asked"]) for name in ("empty", "unfinished", "unusable")}
        return {name: (float(part), float(whole)) for name, (part, whole) in shares.items()}, seconds


def answered_turns(row: Row, student: Encoded) -> list[int]:
    """Places of the row's answers that are learned, were not cut off, and follow a question."""
    messages: Sequence[Row] = row["messages"]
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    covers = [cover for place in student.answers if (cover := student.covers[place]) is not None]
    read = sorted({cover.answer for cover in covers})
    return [turns[number] for number in read if turns[number] and messages[turns[number] - 1]["role"] == "user"]


def answered(row: Row, turn: int, text: str) -> Row:
    """The row up to this turn, which is now the text; the answers before it are no longer learned."""
    asked = before(row, turn)
    earlier = [{**m, "learned": False} if m["role"] == "assistant" else m for m in asked["messages"]]
    return {**asked, "messages": [*earlier, said(text)], "key": f"{row['id']}@written"}
