"""A user's questions → the rows of a benchmark, so that they are asked with its prompt and scored by its rules.

Options are read from the question: at least two lines that begin with A, B, … in order, as in "A. a cat", "(A) a cat", "A) a cat" or
"A: a cat". The answer is then a letter ("B", "(B)", "B. a dog") or the text of an option. The closing lines with which data of this line
of models asks for short answers are left out, since the benchmark has its own.
"""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value

from switchkd.data.errors import DataError, SampleError
from switchkd.data.guard import open_image
from switchkd.data.sources import load_rows
from switchkd.evaluate.benchmarks import BENCHMARKS
from switchkd.evaluate.benchmarks.base import LETTER, SHORT, Benchmark, CannotBeExpressedError, Example
from switchkd.evaluate.benchmarks.data import Rows, checked, undecoded
from switchkd.evaluate.questions import Question, prompt, questions
from switchkd.evaluate.score import is_right

_CLOSING = (SHORT.strip(), LETTER.strip(), "请直接使用所提供的选项字母作为答案回答。", "Please answer yes or no.")
_OPTION = re.compile(r"\(?([A-Z])[.):]\s*(\S.*)")
_GIVEN = re.compile(r"\(?([A-Z])(?:[.):]+(?:\s.*)?)?", re.DOTALL)
_MARK = re.compile(r"<image \d+>")


def export_benchmark(name: str, data: Path, folder: Path, image_root: Path | None = None) -> tuple[Path, int]:
    """Write `folder/NAME.parquet` from the questions in `data`; the file, and how many rows it has. Complete, or not there at all.

    Args:
        name: a key of `BENCHMARKS`.
        data: anything `data.sources.load_rows` reads. Each question is asked alone, with all images of its row.
        folder: what `switchkd evaluate --data` is given.
        image_root: where image paths start; by default the folder of `data`.

    Raises:
        ValueError: no such benchmark; data that cannot be read; or a question that the benchmark cannot ask, with its file, row and what
            is missing.
        FileExistsError: there is such a file already.
    """
    if name not in BENCHMARKS:
        raise ValueError(f"there is no benchmark {name!a}; there are {', '.join(BENCHMARKS)}")
    target = folder / f"{name}.parquet"
    for existing in (target, folder / name):
        if existing.exists():
            raise FileExistsError(f"{existing} exists; delete it first, or give another --output")
    benchmark = BENCHMARKS[name]
    rows = load_rows(data, image_root)
    asked = questions(rows)
    in_row = Counter(question.row for question in asked)
    docs: list[dict[str, Any]] = []
    for number, question in enumerate(asked):
        try:
            example = _example(benchmark, rows[question.row], question, number, in_row[question.row])
            docs += benchmark.express(example)
        except (CannotBeExpressedError, SampleError) as problem:
            where = f"{data}, row {question.row} (id {question.id!a})"
            raise DataError(f"{where} cannot be asked in {benchmark.title}: {problem}") from problem
    made = Dataset.from_list(docs, features=_features(benchmark, docs))
    checked(benchmark, Rows(undecoded(made), f"{data} as {benchmark.title}"))
    folder.mkdir(parents=True, exist_ok=True)
    staging = folder / f".{name}.{os.getpid()}"
    try:
        made.to_parquet(staging)
        os.replace(staging, target)
    finally:
        staging.unlink(missing_ok=True)
    return target, len(made)


def _features(benchmark: Benchmark, docs: list[dict[str, Any]]) -> Features:
    """What the values are; columns of images hold images, and columns of nothing could hold text."""
    light = Dataset.from_list([{k: v for k, v in doc.items() if k not in benchmark.images} for doc in docs])
    kinds = {name: Value("string") if kind == Value("null") else kind for name, kind in light.features.items()}
    return Features({**kinds, **{name: Image() for name in benchmark.images}})


def _example(benchmark: Benchmark, row: dict[str, Any], question: Question, number: int, in_row: int) -> Example:
    """The question with its options taken out of its text and its images opened once."""
    *before, message = prompt(row, question.turn)["messages"]
    if before:
        raise CannotBeExpressedError("its row has a system message, and benchmarks have none")
    text, marks = "", 0
    for part in message["content"]:
        if part["type"] == "image":
            marks += 1
            text += f"<image {marks}>"
        elif _MARK.search(part["text"]):
            raise CannotBeExpressedError(f"its text holds {_MARK.findall(part['text'])[0]}, the mark of an image")
        else:
            text += part["text"]
    if not marks:
        raise CannotBeExpressedError("it has no image")
    if len(benchmark.images) == 1:
        if marks > 1:
            raise CannotBeExpressedError(f"it has {marks} images, and {benchmark.title} shows one (mmmu up to 7)")
        text = _MARK.sub("", text)
    elif marks > len(benchmark.images):
        raise CannotBeExpressedError(f"it has {marks} images, and {benchmark.title} knows {len(benchmark.images)}")
    asked, options = _split(text)
    return Example(
        number=number,
        id=question.id,
        row=row["id"],
        row_questions=in_row,
        question=asked,
        options=options,
        answer=question.expected.strip() if options is None else _letter(question.expected, options),
        kind=question.kind,
        images=tuple(_content(image) for image in row["images"]),
    )


def _split(text: str) -> tuple[str, tuple[str, ...] | None]:
    """The question without closing lines and options; the options' texts, if there are two or more."""
    lines = [line for line in text.strip().split("\n") if line.strip() not in _CLOSING]
    kept: list[str] = []
    options: list[str] = []
    for line in lines:
        found = _OPTION.fullmatch(line.strip())
        if found and found[1] == chr(ord("A") + len(options)):
            options.append(found[2].strip())
        else:
            kept.append(line)
    if len(options) < 2:
        return "\n".join(lines).strip(), None
    return "\n".join(kept).strip(), tuple(options)


def _letter(answer: str, options: tuple[str, ...]) -> str:
    """The letter of the option that is the answer."""
    letters = [chr(ord("A") + index) for index in range(len(options))]
    same = [letter for letter, option in zip(letters, options, strict=True) if is_right(option, answer)]
    if len(same) == 1:
        return same[0]
    given = _GIVEN.fullmatch(answer.strip())
    if given and given[1] in letters:
        return given[1]
    raise CannotBeExpressedError(f"its answer {answer!a} is none of its options {', '.join(letters)}")


def _content(image: dict[str, Any]) -> dict[str, Any]:
    """The bytes of an image that can be opened."""
    content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    open_image({"bytes": content, "path": None})
    return {"bytes": content, "path": None}
