"""Ask a model every question of a data set, and score the answers."""

import logging
import time
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.data.formats import load_rows
from switchkd.evaluate.generate import Answer, answers, given_or_loaded, greedy, with_progress
from switchkd.evaluate.questions import Question, fingerprint, prompt, questions
from switchkd.results.question_results import Prediction, Results
from switchkd.results.score import is_right, score, score_by_kind
from switchkd.versions import versions

logger = logging.getLogger(__name__)


def evaluate_model(
    model: str | Path | PreTrainedModel,
    data: str | Path,
    *,
    processor: ProcessorMixin | None = None,
    image_root: str | Path | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    output: Path | None = None,
) -> Results:
    """Exact match of `model` on every question of `data`, greedily decoded, per kind where the samples name one.

    Each question is asked alone with all images of its sample: no earlier question or answer is shown.

    Args:
        model: a checkpoint directory, a hub name, or a model in memory (then give its `processor`).
        data: anything `data.formats.load_rows` reads.
        processor: by default the one saved with the model.
        image_root: where image paths start; by default the folder of `data`.
        batch_size: questions at a time.
        max_new_tokens: an answer is cut after so many, and counted as truncated.
        output: where to write the results JSON; the predictions get a file of the same name, `.predictions.jsonl`.

    Raises:
        ValueError: data that cannot be used, in whole or in one sample; a model that cannot be used. Whatever a generation
            raises is passed on: an evaluation is complete or fails.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    if output is not None and Path(output).suffix != ".json":
        raise ValueError(f"{output}: results are written as JSON, so the name must end in .json")
    samples = load_rows(data, image_root)
    asked = questions(samples)
    loaded, processor, name = given_or_loaded(model, processor)
    images: Any = processor.image_processor
    begin = time.perf_counter()
    given = _ask(loaded, processor, samples, asked, batch_size, max_new_tokens)
    seconds = time.perf_counter() - begin
    predictions = tuple(
        Prediction(q.id, q.kind, q.text, q.expected, a.text, is_right(q.expected, a.text), a.truncated)
        for q, a in zip(asked, given, strict=True)
    )
    right = [prediction.right for prediction in predictions]
    kinds = score_by_kind([question.kind for question in asked], right)
    accuracies = [kind.accuracy_percent for kind in kinds.values()]
    total = score(right)
    results = Results(
        model=name,
        data=str(data),
        data_fingerprint=fingerprint(samples),
        rows=len(samples),
        questions=total.questions,
        right=total.right,
        accuracy_percent=total.accuracy_percent,
        kinds=kinds,
        mean_over_kinds_percent=sum(accuracies) / len(accuracies) if accuracies else None,
        questions_without_kind=sum(question.kind is None for question in asked),
        truncated=sum(answer.truncated for answer in given),
        generation=greedy(loaded, max_new_tokens).to_diff_dict() | {"do_sample": False, "batch_size": batch_size},
        image_backend=f"{type(images).__name__} ({images.backend})",
        device=loaded.device.type,
        dtype=str(loaded.dtype).removeprefix("torch."),
        versions=versions("torch", "transformers", "tokenizers", "pillow"),
        seconds=round(seconds, 3),
        predictions=predictions,
    )
    if results.truncated:
        logger.warning("%d of %d answers were cut at max_new_tokens=%d", results.truncated, len(given), max_new_tokens)
    if output is not None:
        results.save(output)
    return results


def _ask(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    samples: Dataset,
    asked: list[Question],
    batch_size: int,
    max_new_tokens: int,
) -> list[Answer]:
    batches: list[list[Question]] = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
    given: list[Answer] = []
    for batch in with_progress(batches, "Asking"):
        conversations: list[dict[str, Any]] = [prompt(samples[question.sample], question.turn) for question in batch]
        given += answers(model, processor, conversations, max_new_tokens=max_new_tokens)
    if len(given) != len(asked):
        raise RuntimeError(f"{len(asked)} questions were asked and {len(given)} answers came back")
    return given
