"""MMMU, validation split, with up to seven images in a question, its options, or both: the official parser.

The parser picks a letter at random where it finds none. The generator is seeded with the question's id, so that the same answers always
get the same score, and the share of such answers is reported. Images stand where the question names them (`<image 1>`).
"""

import ast
import random
import re
from collections.abc import Mapping
from typing import Any

from switchkd.evaluate.benchmarks.benchmark import Asked, Benchmark, Doc, check_question, is_text

IMAGES = tuple(f"image_{number}" for number in range(1, 8))
SEED = 0
_MARK = re.compile(r"<image (\d+)>")


def _options(doc: Doc) -> list[str] | None:
    """The options of a choice question, which the data holds as the text of a Python list."""
    try:
        options = ast.literal_eval(doc["options"])
    except (ValueError, SyntaxError, TypeError):
        return None
    return options if isinstance(options, list) and all(isinstance(option, str) for option in options) else None


def check(doc: Doc) -> str | None:
    """Whether the question names its images, and the answer is a letter of an option or a text."""
    text = f"{doc['question']} {doc['options']}"
    images = [f"image_{number}" for number in _MARK.findall(text)] or [IMAGES[0]]
    if unknown := [name for name in images if name not in IMAGES]:
        return f"names {unknown[0]}, and there are {IMAGES[0]} to {IMAGES[-1]}"
    if problem := check_question(doc, *images):
        return problem
    if not re.fullmatch(r"[^_]+_.+_\d+", str(doc["id"])):
        return f"`id` must look like validation_Subject_1, not {doc['id']!a}"
    if doc["question_type"] not in ("multiple-choice", "open"):
        return f"`question_type` must be multiple-choice or open, not {doc['question_type']!a}"
    if not is_text(doc["answer"]):
        return f"`answer` must be text, not {doc['answer']!a}"
    if doc["question_type"] == "multiple-choice":
        options = _options(doc)
        if options is None or len(options) < 2:
            return f"`options` must be the text of a list of at least two texts, not {doc['options']!a}"
        if doc["answer"] not in [chr(ord("A") + index) for index in range(len(options))]:
            return f"`answer` must be the letter of one of the {len(options)} options, not {doc['answer']!a}"
    return None


def ask(doc: Doc, text: str) -> Asked:
    """The text with each image where it is named; the first image before a text that names none."""
    if not _MARK.search(text):
        return [{"type": "image", "text": None}, {"type": "text", "text": text}], [doc[IMAGES[0]]]
    parts: list[dict[str, str | None]] = []
    images = []
    for index, piece in enumerate(_MARK.split(text)):
        if index % 2:
            parts.append({"type": "image", "text": None})
            images.append(doc[f"image_{piece}"])
        elif piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts, images


def prepare(doc: Doc) -> Doc:
    """An open question may have several answers, which the data holds as the text of a Python list."""
    if doc["question_type"] != "open" or not doc["answer"].startswith("["):
        return doc
    several = _options({"options": doc["answer"]})
    return {**doc, "answer": several} if several else doc


def configure(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The official parser, with its random choices repeatable and counted."""
    official = upstream["process_results"]

    def process(doc: Doc, results: list[str]) -> dict[str, Any]:
        random.seed(f"{SEED} {doc['id']}")
        before = random.getstate()
        scored = official(doc, results)
        return {"mmmu_acc": scored["mmmu_acc"], "unparsable": float(random.getstate() != before)}

    unparsable = {"metric": "unparsable", "aggregation": "mean", "higher_is_better": False}
    return {"process_results": process, "metric_list": [*upstream["metric_list"], unparsable]}


MMMU = Benchmark(
    name="mmmu",
    title="MMMU",
    paper="https://arxiv.org/abs/2311.16502",
    upstream="mmmu/mmmu_val.yaml",
    published_samples=900,
    metric="mmmu_acc",
    columns=("id", "question", "options", "answer", "question_type"),
    images=IMAGES,
    check=check,
    configure=configure,
    prepare=prepare,
    ask=ask,
)
