"""AI2D, test split: questions about diagrams of school science, answered by the letter of the right option.

The task's filter reads an answer that begins with a letter and a dot ("B. the roots") as that letter; "(B)" scores 0.
"""

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, check_question, is_text


def check(doc: Doc) -> str | None:
    """Whether the answer is the index of an option, as text."""
    if problem := check_question(doc):
        return problem
    options = doc["options"]
    if not isinstance(options, list) or len(options) < 2 or not all(is_text(option) for option in options):
        return f"`options` must be a list of at least two texts, not {options!a}"
    if doc["answer"] not in [str(index) for index in range(len(options))]:
        return f"`answer` must be the index of one of the {len(options)} options as text, not {doc['answer']!a}"
    return None


AI2D = Benchmark(
    name="ai2d",
    title="AI2D",
    paper="https://arxiv.org/abs/1603.07396",
    upstream="ai2d/ai2d.yaml",
    published_samples=3088,
    metric="exact_match",
    columns=("question", "options", "answer"),
    check=check,
)
