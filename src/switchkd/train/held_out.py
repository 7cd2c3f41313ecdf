"""Rows that are held out of training, and what the student answers to their questions."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.batch import sample_id
from switchkd.evaluate.batches import ask_batches, by_length
from switchkd.evaluate.generate import answers
from switchkd.evaluate.questions import Question, prompt, questions
from switchkd.results.metrics import exact

#: Answers to held-out questions end after so many tokens: they are asked again and again.
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class HeldOut:
    """The usable rows of `data.validation`, and the first few of their questions."""

    rows: Dataset | list[Any]
    #: `sample` is the place of the row.
    questions: tuple[Question, ...]

    @classmethod
    def of(cls, rows: Dataset, count: int) -> "HeldOut":
        """Rows of an index, and so many of their questions."""
        first = rows.select(range(min(count, len(rows))))  # each asks one question at least, or none that can be scored
        asked = questions(first.add_column("problem", [None] * len(first)))[0] if count else []
        return cls(rows, tuple(asked[:count]))

    def exact_match_percent(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int) -> float:
        """Of the questions, shared out among all processes, the share that is answered exactly, greedily decoded."""

        def right(places: list[int]) -> int:
            batch = [self.questions[place] for place in places]
            asked = [prompt(self.rows[question.sample], question.turn) for question in batch]
            given = answers(model, processor, asked, max_new_tokens=ANSWER_TOKENS)
            return sum(
                int(exact(question.accepted or (question.expected,), answer.text))
                for question, answer in zip(batch, given, strict=True)
            )

        batches = by_length([question.length for question in self.questions], batch_size)
        return 100 * sum(ask_batches(batches, right, None, shared=True)) / len(self.questions)


def count_shared(train: Dataset, held_out: Dataset) -> tuple[int, list[str]]:
    """How many held-out rows are in the training rows too, with the same words and pictures, and the ids of the first of them."""

    def content(key: str) -> str:
        return key.rpartition("@")[2]

    learned = set(map(content, train["key"][:]))
    shared = [sample_id(key) for key in held_out["key"][:] if content(key) in learned]
    return len(shared), shared[:3]
