"""POPE, test split, three categories: is there such an object in the image?

lmms-eval compares with exactly "yes" and "no", so that "Yes." scores 0. Here the rule is that of POPE's own script: of the first
sentence, without commas, an answer with the word "No", "no" or "not" is a no, and every other a yes. One difference: an answer with
none of these words and no "yes" either is wrong and counted as unparsable, where the script takes it for a yes and so gives two
thirds to a model that says nothing. `f1_official` is the script's figure; the two are equal where nothing is unparsable.
"""

from collections.abc import Callable, Mapping
from typing import Any

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, Example, check_question, yes_or_no

CATEGORIES = ("adversarial", "popular", "random")
#: Expected answer and given answer ("yes", "no", or None: neither), with the category.
Item = Mapping[str, Any]


def parse(text: str) -> str | None:
    """ "yes", "no", or None for neither."""
    words = text.strip().split(".")[0].replace(",", "").split()
    if {"No", "no", "not"} & set(words):
        return "no"
    return "yes" if "yes" in (word.strip("!:;\"'*").lower() for word in words) else None


def process(doc: Doc, results: list[str]) -> dict[str, Any]:
    """One row's item, for each metric."""
    item = {"category": doc["category"], "expected": doc["answer"].strip().lower(), "given": parse(results[0])}
    return dict.fromkeys(("f1", "accuracy", "f1_official", "accuracy_official", "yes_ratio", "unparsable"), item)


def _by_category(rule: Callable[[list[Item]], float]) -> Callable[[list[Item]], float]:
    """The plain mean of the categories' figures."""

    def mean(items: list[Item]) -> float:
        categories = sorted({item["category"] for item in items})
        return sum(rule([item for item in items if item["category"] == name]) for name in categories) / len(categories)

    return mean


def _f1(items: list[Item]) -> float:
    right = sum(item["given"] == item["expected"] == "yes" for item in items)
    said = sum(item["given"] == "yes" for item in items)
    true = sum(item["expected"] == "yes" for item in items)
    return 2 * right / (said + true) if said + true else 0.0


def _accuracy(items: list[Item]) -> float:
    return sum(item["given"] == item["expected"] for item in items) / len(items)


def _official(rule: Callable[[list[Item]], float]) -> Callable[[list[Item]], float]:
    return lambda items: rule([{**item, "given": item["given"] or "yes"} for item in items])


def configure(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The parser and the metrics are ours."""
    metrics: dict[str, Callable[[list[Item]], float]] = {
        "f1": _by_category(_f1),
        "accuracy": _by_category(_accuracy),
        "f1_official": _by_category(_official(_f1)),
        "accuracy_official": _by_category(_official(_accuracy)),
        "yes_ratio": lambda items: sum(item["given"] == "yes" for item in items) / len(items),
        "unparsable": lambda items: sum(item["given"] is None for item in items) / len(items),
    }
    listed = [{"metric": name, "aggregation": rule, "higher_is_better": True} for name, rule in metrics.items()]
    return {"process_results": process, "metric_list": listed}


def check(doc: Doc) -> str | None:
    """Whether the row is a yes/no question of a category."""
    if problem := check_question(doc):
        return problem
    if doc["category"] not in CATEGORIES:
        return f"`category` {doc['category']!a} is none of {', '.join(CATEGORIES)}"
    if not isinstance(doc["answer"], str) or doc["answer"].strip().lower() not in ("yes", "no"):
        return f"`answer` must be yes or no, not {doc['answer']!a}"
    return None


def express(example: Example) -> list[dict[str, Any]]:
    """A yes/no question; its kind is the category, if it is one."""
    answer = yes_or_no(example)
    return [
        {
            "id": str(example.number),
            "question_id": str(example.number),
            "question": example.question,
            "answer": answer,
            "image_source": example.id,
            "image": example.images[0],
            "category": example.kind if example.kind in CATEGORIES else "random",
        }
    ]


POPE = Benchmark(
    name="pope",
    title="POPE",
    paper="https://arxiv.org/abs/2305.10355",
    upstream="pope/pope.yaml",
    published_rows=9000,
    metric="f1",
    columns=("question_id", "question", "answer", "category"),
    check=check,
    configure=configure,
    express=express,
)
