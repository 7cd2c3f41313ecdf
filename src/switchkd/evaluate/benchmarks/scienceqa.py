"""ScienceQA, the questions of the test split that have an image: the letter of the right choice.

"A" and "A. the text" are read; "(A)" and "The answer is A" score 0, as in LLaVA's script.
"""

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, check_question, is_text


def check(doc: Doc) -> str | None:
    """Whether the answer is the index of a choice."""
    if problem := check_question(doc):
        return problem
    choices, answer = doc["choices"], doc["answer"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(is_text(choice) for choice in choices):
        return f"`choices` must be a list of at least two texts, not {choices!a}"
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        return f"`answer` must be the index of one of the {len(choices)} choices, not {answer!a}"
    if not isinstance(doc["hint"], str):
        return f"`hint` must be text (empty where there is none), not {doc['hint']!a}"
    return None


SCIENCEQA = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    paper="https://arxiv.org/abs/2209.09513",
    upstream="scienceqa/scienceqa_img.yaml",
    published_samples=2017,
    metric="exact_match",
    columns=("question", "choices", "answer", "hint"),
    check=check,
)
