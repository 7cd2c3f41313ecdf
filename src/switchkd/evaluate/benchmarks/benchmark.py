"""What a benchmark is: where lmms-eval keeps its task, what its rows must hold, and what of the task is ours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: One row in the schema of lmms-eval's data set. Images are `{"bytes": …, "path": …}`, undecoded.
Doc = Mapping[str, Any]
#: Columns of all rows together, without images.
Columns = Mapping[str, Sequence[Any]]
#: The parts of a user's message, as in `data.sources.FEATURES`, and the images in their order.
Asked = tuple[list[dict[str, str | None]], list[dict[str, Any]]]

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Example:
    """A user's question, as `switchkd data export-benchmark` gives it to `Benchmark.express`."""

    #: From 0, in the order of the data; its name there; its row's, and how many questions that row asks.
    number: int
    id: str
    row: str
    row_questions: int
    #: Without options; `options` holds those, without their letters. None: an open question. For a benchmark with several images
    #: a question, `<image 1>` stands where the first of them does.
    question: str
    options: tuple[str, ...] | None
    #: The text of the answer; with options, one of their letters.
    answer: str
    kind: str | None
    #: As `{"bytes": …, "path": None}`.
    images: tuple[dict[str, Any], ...]


class CannotBeExpressedError(ValueError):
    """A question that has no place in a benchmark's schema. The message says what is missing."""


def open_answer(example: Example) -> str:
    """The answer to a question without options."""
    if example.options is not None:
        raise CannotBeExpressedError("it has options, which mmbench_en, mmbench_cn, scienceqa and mmmu ask for")
    return example.answer


def yes_or_no(example: Example) -> str:
    """The answer to a question without options, "yes" or "no"."""
    answer = open_answer(example).strip(".").lower()
    if answer not in ("yes", "no"):
        raise CannotBeExpressedError(f"its answer is {example.answer!a}, not yes or no")
    return answer


def image_first(doc: Doc, text: str) -> Asked:
    """The row's one image and the text behind it."""
    return [{"type": "image", "text": None}, {"type": "text", "text": text}], [doc["image"]]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. Prompt, parser and metric are lmms-eval's, except for what `configure` replaces."""

    #: On the command line, in results, and the name of its file below `--data`.
    name: str
    title: str
    paper: str
    #: The task's file below lmms-eval's `tasks` folder; its data set on the hub is named there.
    upstream: str
    #: Rows of the published split. Other data is scored too, and the result says how many rows it had.
    published_rows: int
    #: The metric of the task that is the score, and what it is multiplied with.
    metric: str
    #: What a row must hold, besides `images`.
    columns: tuple[str, ...]
    #: What is wrong with a row, if anything. An image column holds only whether there is an image.
    check: Callable[[Doc], str | None]
    #: The rows that ask one question of a user's.
    express: Callable[[Example], list[dict[str, Any]]]
    images: tuple[str, ...] = ("image",)
    scale: float = 100.0
    unit: str = "percent"
    #: What the score can reach, from the rows' columns.
    out_of: Callable[[Columns], float] = lambda columns: 100.0
    #: What is wrong with the rows together, if anything.
    check_all: Callable[[Columns], str | None] = lambda columns: None
    #: What of the task is ours, given lmms-eval's configuration of it.
    configure: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda upstream: {}
    #: The row as it is asked and scored.
    prepare: Callable[[Doc], Doc] = lambda doc: doc
    #: The parts and images of a prompt, given the row and the task's text for it.
    ask: Callable[[Doc, str], Asked] = image_first
    #: Longer answers are cut, where lmms-eval's task sets no length.
    max_new_tokens: int = 64


def suffix(upstream: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """The task's prompt settings with some of them changed."""
    settings = upstream["lmms_eval_specific_kwargs"]["default"]
    return {"lmms_eval_specific_kwargs": {"default": {**settings, **changes}}}


def is_text(value: Any) -> bool:
    """Whether it is text with something in it."""
    return isinstance(value, str) and bool(value.strip())


def check_question(doc: Doc, *images: str) -> str | None:
    """The check that all benchmarks begin with: a question, and every image of `images`."""
    if not is_text(doc["question"]):
        return f"`question` must be text, not {doc['question']!a}"
    for image in images or ("image",):
        if not doc[image]:
            return f"`{image}` holds no image"
    return None
