"""MMBench, dev splits in English and Chinese: a question counts when it is right in every rotation of its options.

The rotations of question `i` are the rows with `index` i, 1,000,000 + i, 2,000,000 + i, … Letters are read by lmms-eval's static
rules: no model is asked what an answer meant. lmms-eval has no static Chinese task, so both use the English one's rules here. Where the
data says "nan" for a missing hint or option, the prompt leaves it out.
"""

from collections.abc import Mapping
from typing import Any

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Columns, Doc, check_question, is_text

LETTERS = "ABCD"
_ROTATION = 1_000_000


def prepare(doc: Doc) -> Doc:
    """Without the text "nan" of data that went through a table."""
    absent = {key: None for key in ("hint", *LETTERS) if doc[key] in ("nan", "")}
    return {**doc, **absent}


def check(doc: Doc) -> str | None:
    """Whether the answer is the letter of an option."""
    if problem := check_question(doc):
        return problem
    if not isinstance(doc["index"], int):
        return f"`index` must be a whole number, not {doc['index']!a}"
    options = [letter for letter in LETTERS if prepare(doc)[letter] is not None]
    if len(options) < 2:
        return "needs at least two options in `A`, `B`, `C`, `D`"
    if doc["answer"] not in options:
        return f"`answer` must be one of {', '.join(options)}, not {doc['answer']!a}"
    if not is_text(doc["category"]):
        return f"`category` must be text, not {doc['category']!a}"
    return None


def check_all(columns: Columns) -> str | None:
    """Whether every rotation has its question, and no row is there twice."""
    seen: set[int] = set()
    for index in columns["index"]:
        if index in seen:
            return f"index {index} stands there twice"
        seen.add(index)
    for index in seen:
        if index % _ROTATION not in seen:
            return f"index {index} is a rotation of index {index % _ROTATION}, which has no row"
    return None


def configure(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """The static rules, without the files that lmms-eval writes for a server."""
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    def circular(results: list[Any]) -> float:
        overall, _, _ = MMBench_Evaluator().eval_result(results, eval_method="static")
        return float(overall)

    metric = {"metric": "gpt_eval_score", "aggregation": circular, "higher_is_better": True}
    return {"metric_list": [metric], "test_split": "dev"}


def _mmbench(name: str, title: str, upstream: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        paper="https://arxiv.org/abs/2307.06281",
        upstream=upstream,
        published_samples=4329,
        metric="gpt_eval_score",
        columns=("index", "question", "hint", "answer", *LETTERS, "category", "L2-category", "source", "split"),
        check=check,
        check_all=check_all,
        configure=configure,
        prepare=prepare,
    )


MMBENCH_EN = _mmbench("mmbench_en", "MMBench-EN", "mmbench/mmbench_en_dev_static.yaml")
MMBENCH_CN = _mmbench("mmbench_cn", "MMBench-CN", "mmbench/mmbench_cn_dev.yaml")
