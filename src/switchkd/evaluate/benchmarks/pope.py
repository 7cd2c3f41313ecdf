"""POPE, test split, three categories: is there such an object in the image?

lmms-eval compares with exactly "yes" and "no", so that "Yes." scores 0. Here the rule is that of POPE's own script: of the first
sentence, without commas, an answer with the word "No", "no" or "not" is a no, and every other a yes. One difference: an answer with
none of these words and no "yes" either is wrong and counted as unparsable, where the script takes it for a yes and so gives two
thirds to a model that says nothing. `f1_official` is the script's figure; the two are equal where nothing is unparsable.
"""

from collections.abc import Callable, Mapping
from typing import Any

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, check_question

CATEGORIES = ("adversarial", "popular", "random")
#: Of one sample: expected answer, given answer ("yes", "no", or None: neither) and category.
Judged = Mapping[str, Any]


def parse(text: str) -> str | None:
    """ "yes", "no", or None for neither."""
    words = text.strip().split(".")[0].replace(",", "").split()
    if {"No", "no", "not"} & set(words):
        return "no"
    return "yes" if "yes" in (word.strip("!:;\"'*").lower() for word in words) else None


def process(doc: Doc, results: list[str]) -> dict[str, Any]:
    """What each metric is given of one sample."""
    judged = {"category": doc["category"], "expected": doc["answer"].strip().lower(), "given": parse(results[0])}
    return dict.fromkeys(("f1", "accuracy", "f1_official", "accuracy_official", "yes_ratio", "unparsable"), judged)


def _by_category(rule: Callable[[list[Judged]], float]) -> Callable[[list[Judged]], float]:
    """The plain mean of the categories' figures."""

    def mean(samples: list[Judged]) -> float:
        categories = sorted({str(one["category"]) for one in samples})
        return sum(rule([one for one in samples if one["category"] == name]) for name in categories) / len(categories)

    return mean


def _f1(samples: list[Judged]) -> float:
    both = sum(one["given"] == one["expected"] == "yes" for one in samples)
    given = sum(one["given"] == "yes" for one in samples)
    expected = sum(one["expected"] == "yes" for one in samples)
    return 2 * both / (given + expected) if given + expected else 0.0


def _accuracy(samples: list[Judged]) -> float:
    right: int = sum(one["given"] == one["expected"] for one in samples)
    return right / len(samples)


def _official(rule: Callable[[list[Judged]], float]) -> Callable[[list[Judged]], float]:
    return lambda samples: rule([{**one, "given": one["given"] or "yes"} for one in samples])


def configure(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """POPE's own parser and metrics in the place of the task's."""
    metrics: dict[str, Callable[[list[Judged]], float]] = {
        "f1": _by_category(_f1),
        "accuracy": _by_category(_accuracy),
        "f1_official": _by_category(_official(_f1)),
        "accuracy_official": _by_category(_official(_accuracy)),
        "yes_ratio": lambda samples: sum(one["given"] == "yes" for one in samples) / len(samples),
        "unparsable": lambda samples: sum(one["given"] is None for one in samples) / len(samples),
    }
    listed = [{"metric": name, "aggregation": rule, "higher_is_better": True} for name, rule in metrics.items()]
    return {"process_results": process, "metric_list": listed}


def check(doc: Doc) -> str | None:
    """Whether the sample is a yes/no question of a category."""
    if problem := check_question(doc):
        return problem
    if doc["category"] not in CATEGORIES:
        return f"`category` {doc['category']!a} is none of {', '.join(CATEGORIES)}"
    if not isinstance(doc["answer"], str) or doc["answer"].strip().lower() not in ("yes", "no"):
        return f"`answer` must be yes or no, not {doc['answer']!a}"
    return None


POPE = Benchmark(
    name="pope",
    title="POPE",
    paper="https://arxiv.org/abs/2305.10355",
    upstream="pope/pope.yaml",
    published_samples=9000,
    metric="f1",
    columns=("question_id", "question", "answer", "category"),
    check=check,
    configure=configure,
)
