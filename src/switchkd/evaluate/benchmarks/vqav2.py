"""VQAv2, validation split (test-dev is scored by the official server only): soft accuracy.

An answer earns min(n/3, 1) for the n people who gave it, averaged over leaving one person out. People are distinguished by `answer_id`:
without it a unanimous right answer would score 0, so samples need it.
"""

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, check_question, is_text


def check(doc: Doc) -> str | None:
    """Whether people answered, and can be distinguished."""
    if problem := check_question(doc):
        return problem
    answers = doc["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return f"`answers` must be a list of objects with an `answer`, not {answers!a}"
    if not any(is_text(answer.get("answer")) for answer in answers):
        return "`answers` holds no `answer`"
    people = {answer.get("answer_id") for answer in answers}
    if None in people or len(people) != len(answers):
        return "`answers` need an `answer_id` each, all different: people are told apart by it"
    return None


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2 (val)",
    paper="https://arxiv.org/abs/1612.00837",
    upstream="vqav2/vqav2_val.yaml",
    published_samples=214354,
    metric="exact_match",
    columns=("question_id", "question", "answers"),
    check=check,
)
