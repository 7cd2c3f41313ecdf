"""VizWiz-VQA, validation split: soft accuracy, as in VQAv2.

The prompt: "When the provided information is insufficient, respond with 'Unanswerable'.", lmms-eval's and LLaVA's.
"""

from switchkd.evaluate.benchmarks.benchmark import Benchmark
from switchkd.evaluate.benchmarks.textvqa import check_answers

VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz",
    paper="https://arxiv.org/abs/1802.08218",
    upstream="vizwiz_vqa/vizwiz_vqa_val.yaml",
    published_samples=4319,
    metric="exact_match",
    columns=("question_id", "question", "answers"),
    check=check_answers,
)
