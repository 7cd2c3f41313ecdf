"""TextVQA, validation split: soft accuracy, as in VQAv2.

The prompt names the OCR tokens of the sample, as in the LLaVA line of models (whose published figures are about five points higher with
them than without). lmms-eval's default is without.
"""

from collections.abc import Mapping
from typing import Any

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, check_question, is_text, suffix


def check_answers(doc: Doc) -> str | None:
    """Whether people answered."""
    if problem := check_question(doc):
        return problem
    if not isinstance(doc["answers"], list) or not any(is_text(answer) for answer in doc["answers"]):
        return f"`answers` must be a list of texts, not {doc['answers']!a}"
    return None


def check(doc: Doc) -> str | None:
    """Whether people answered, and the OCR tokens are a list."""
    if problem := check_answers(doc):
        return problem
    if not isinstance(doc["ocr_tokens"], list) or not all(isinstance(token, str) for token in doc["ocr_tokens"]):
        return f"`ocr_tokens` must be a list of texts (an empty one where nothing was read), not {doc['ocr_tokens']!a}"
    return None


def configure(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """OCR tokens in the prompt, and no file for a server."""
    kept = [metric for metric in upstream["metric_list"] if metric["metric"] == "exact_match"]
    return {**suffix(upstream, ocr=True), "metric_list": kept}


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA",
    paper="https://arxiv.org/abs/1904.08920",
    upstream="textvqa/textvqa_val.yaml",
    published_samples=5000,
    metric="exact_match",
    columns=("question_id", "question", "answers", "ocr_tokens"),
    check=check,
    configure=configure,
)
