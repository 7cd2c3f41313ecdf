"""What a benchmark is: where lmms-eval keeps its task, what its samples must hold, and what of its task is replaced."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: One sample in the schema of lmms-eval's data set. Images are `{"bytes": …, "path": …}`, undecoded.
Doc = Mapping[str, Any]
#: Columns of all samples together, without images.
Columns = Mapping[str, Sequence[Any]]
#: The parts of a user's message, as in `data.formats.FEATURES`, and the images in their order.
Asked = tuple[list[dict[str, str | None]], list[dict[str, Any]]]


def image_first(doc: Doc, text: str) -> Asked:
    """The sample's one image and the text behind it."""
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
    #: Samples of the published split. Other data is scored too, and the result says how many samples it had.
    published_samples: int
    #: The metric of the task that is the score, and what it is multiplied with. `NAME,FILTER` where the task has several filters.
    metric: str
    #: What a sample must hold, besides `images`.
    columns: tuple[str, ...]
    #: What is wrong with a sample, if anything. An image column holds only whether there is an image.
    check: Callable[[Doc], str | None]
    images: tuple[str, ...] = ("image",)
    scale: float = 100.0
    unit: str = "percent"
    #: What the score can reach, from the samples' columns.
    max_score: Callable[[Columns], float] = lambda columns: 100.0
    #: What is wrong with the samples together, if anything.
    check_all: Callable[[Columns], str | None] = lambda columns: None
    #: The settings of the task that are replaced, given lmms-eval's configuration of it.
    configure: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda upstream: {}
    #: The sample as it is asked and scored.
    prepare: Callable[[Doc], Doc] = lambda doc: doc
    #: The parts and images of a prompt, given the sample and the task's text for it.
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
