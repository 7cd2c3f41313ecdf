"""GQA, balanced test-dev split: exact match, without case and punctuation.

On the hub the images are a data set of their own, which lmms-eval's task downloads whatever is asked; here they are joined to the
samples by `benchmark_samples.load` (or stand in the samples).
"""

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc, check_question, is_text

#: The configuration on the hub that holds the images, and their file below `--data`.
IMAGES_CONFIG = "testdev_balanced_images"
IMAGES_FILE = "gqa-images"


def check(doc: Doc) -> str | None:
    """Whether the sample has an answer."""
    if problem := check_question(doc):
        return problem
    return None if is_text(doc["answer"]) else f"`answer` must be text, not {doc['answer']!a}"


GQA = Benchmark(
    name="gqa",
    title="GQA",
    paper="https://arxiv.org/abs/1902.09506",
    upstream="gqa/gqa.yaml",
    published_samples=12578,
    metric="exact_match",
    columns=("question", "answer"),
    check=check,
)
