"""VizWiz-VQA, validation split: soft accuracy, as in VQAv2.

The prompt: "When the provided information is insufficient, respond with 'Unanswerable'.", lmms-eval's and LLaVA's.
"""

from typing import Any

from switchkd.evaluate.benchmarks.benchmark import Benchmark, Example, open_answer
from switchkd.evaluate.benchmarks.textvqa import check_answers
from switchkd.evaluate.benchmarks.vqav2 import PEOPLE


def express(example: Example) -> list[dict[str, Any]]:
    """An open question; all ten people give its one answer."""
    return [
        {
            "question_id": str(example.number),
            "image": example.images[0],
            "question": example.question,
            "answers": [open_answer(example)] * PEOPLE,
        }
    ]


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz",
    paper="https://arxiv.org/abs/1802.08218",
    upstream="vizwiz_vqa/vizwiz_vqa_val.yaml",
    published_rows=4319,
    metric="exact_match",
    columns=("question_id", "question", "answers"),
    check=check_answers,
    express=express,
)
