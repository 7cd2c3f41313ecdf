"""MME, test split: two questions about each image, one answered yes, one no.

Per category accuracy and accuracy+ (both right), in points: 200 per category, 2000 for perception, which alone is the score.
An answer that contains "no" among its first four letters is a no: "None" and "Not sure" are.
"""

from collections import Counter

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Columns, Doc, check_question, is_text

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def check(doc: Doc) -> str | None:
    """Whether the sample is a yes/no question of a known category."""
    if problem := check_question(doc):
        return problem
    if not is_text(doc["question_id"]):
        return f"`question_id` must be text, not {doc['question_id']!a}"
    if doc["category"] not in PERCEPTION + COGNITION:
        return f"`category` {doc['category']!a} is none of {', '.join(PERCEPTION + COGNITION)}"
    if not is_text(doc["answer"]) or doc["answer"].lower().strip().replace(".", "") not in ("yes", "no"):
        return f"`answer` must be Yes or No, not {doc['answer']!a}"
    return None


def check_all(columns: Columns) -> str | None:
    """Whether there are two questions about each image."""
    pairs = Counter(zip(columns["category"], columns["question_id"], strict=True))
    for (category, question), count in pairs.items():
        if count != 2:
            return f"question_id {question!a} of category {category} has {count} rows, and MME counts pairs of 2"
    if not max_score(columns):
        return f"there is no perception category ({', '.join(PERCEPTION)}), over which MME's score is"
    return None


def max_score(columns: Columns) -> float:
    """200 points for each perception category."""
    return 200.0 * len(set(columns["category"]) & set(PERCEPTION))


MME = Benchmark(
    name="mme",
    title="MME",
    paper="https://arxiv.org/abs/2306.13394",
    upstream="mme/mme.yaml",
    published_samples=2374,
    metric="mme_perception_score",
    scale=1.0,
    unit="points",
    columns=("question_id", "question", "answer", "category"),
    check=check,
    check_all=check_all,
    max_score=max_score,
)
