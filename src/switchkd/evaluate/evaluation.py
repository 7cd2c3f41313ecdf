"""Ask a model every question of a data set, and score the answers."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.data.errors import MAX_BAD_FRACTION, SampleError
from switchkd.data.formats import load_rows
from switchkd.data.sources import Data, described
from switchkd.evaluate.batches import ask_batches, by_length
from switchkd.evaluate.generate import answers, given_or_loaded, greedy, reading_problems, set_aside
from switchkd.evaluate.kept_answers import kept_answers
from switchkd.evaluate.questions import Bad, Question, about, check_share, fingerprint, prompt, questions
from switchkd.evaluate.scoring import choose_metrics, count_metrics, scored
from switchkd.processes import processes
from switchkd.results.intervals import intervals
from switchkd.results.metrics import Chosen
from switchkd.results.question_results import Prediction, Results, Skipped, predictions_path
from switchkd.results.score import score, score_by_kind
from switchkd.versions import versions

logger = logging.getLogger(__name__)


def load_questions(
    data: Data,
    image_root: str | Path | None = None,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    columns: Mapping[str, str] | None = None,
) -> tuple[Dataset, list[Question], list[Bad]]:
    """The samples of `data`, every question that they ask, and those that cannot be used. No image is opened.

    Raises:
        DataError: there is no such data, none of it can be asked, or more than `max_bad_fraction` cannot.
    """
    samples = load_rows(data, image_root, columns)
    asked, bad = questions(samples)
    check_share(bad, len(samples), max_bad_fraction)
    return samples, asked, bad


def evaluate_model(
    model: str | Path | PreTrainedModel,
    data: Data,
    *,
    processor: ProcessorMixin | None = None,
    image_root: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    metrics: Chosen | None = None,
    dtype: str = "auto",
    device: str | None = None,
    output: str | Path | None = None,
    name: str | None = None,
    share: bool = False,
) -> Results:
    """The score of `model` on every question of `data`, greedily decoded, per kind where the samples name one.

    Each question is asked alone with all images of its sample: no earlier question or answer is shown. Questions that cannot be asked are
    skipped, never silently: each is logged and listed in the results with its reason, and what is counted is what was asked.

    Args:
        model: a checkpoint directory, a hub name, or a model in memory (then give its `processor`).
        data: anything `load_rows` reads, rows in memory among it.
        processor: by default the one saved with the model.
        image_root: where image paths start; by default the folder of `data`.
        columns: our names of columns → those of `data`, as `load_rows` takes them.
        batch_size: questions at a time.
        max_new_tokens: an answer is cut after so many, and counted as truncated.
        max_bad_fraction: the share of rows that is put up with of which something cannot be asked.
        metrics: kind of question → metric (`results/metrics.py`), None: of all others; by default exact match. A row's own goes first.
        dtype: of the weights of a model that is loaded; `auto` keeps the checkpoint's own.
        device: where such a model goes; by default the GPU if there is one.
        output: where to write the results JSON; the predictions get a file of the same name, `.predictions.jsonl`.
        name: what the results call the model; by default where it is opened.
        share: every process of the run (`torchrun`, `accelerate launch`) calls this with the same arguments and asks its share of the
            batches; all of them return the whole results, and the main one writes them.

    Raises:
        ValueError: data that cannot be used, in whole or in too many rows; a model that cannot be used. Whatever a generation raises is
            passed on. The answers made until then are kept beside `output`.
        OSError: `output` cannot be written; nothing has been asked then.
    """
    if batch_size < 1 or max_new_tokens < 1:
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    if not 0 <= max_bad_fraction < 1:
        raise ValueError(f"max_bad_fraction must be at least 0 and less than 1, got {max_bad_fraction}")
    tells = not share or processes().is_main_process
    output = None if output is None else Path(output)
    if output is not None and output.suffix != ".json":
        raise ValueError(f"{output}: results are written as JSON, so the name must end in .json")
    with kept_answers(output, None if output is None else predictions_path(output)) as keep:
        samples, asked, bad = load_questions(data, image_root, max_bad_fraction, columns)
        asked, unscorable = choose_metrics(asked, metrics or {})
        bad += unscorable
        check_share(bad, len(samples), max_bad_fraction)
        loaded, processor, opened_as = given_or_loaded(model, processor, dtype=dtype, device=device)
        images: Any = processor.image_processor
        begin = time.perf_counter()
        unreadable: list[Bad] = []

        def ask(places: list[int]) -> tuple[list[Prediction], list[Bad]]:
            given, unread = _ask(loaded, processor, samples, [asked[place] for place in places], max_new_tokens)
            given = scored(given, all_there=False)
            keep(given)
            unreadable.extend(unread)
            check_share([*bad, *unreadable], len(samples), max_bad_fraction)
            return given, unread

        batches = by_length([question.length for question in asked], batch_size)
        answered = ask_batches(batches, ask, "Asking", shared=share)
        places = {question.id: place for place, question in enumerate(asked)}
        predictions = sorted((one for given, _ in answered for one in given), key=lambda one: places[one.id])
        bad += sorted((one for _, unread in answered for one in unread), key=lambda one: places[one.id])
        check_share(bad, len(samples), max_bad_fraction)
        seconds = time.perf_counter() - begin
        for one in bad if tells else ():
            logger.warning("skipped %s", one.reason)
        predictions = scored(predictions, all_there=True)
        total = score(prediction.points for prediction in predictions)
        kinds = score_by_kind([p.kind for p in predictions], [p.points for p in predictions])
        accuracies = [kind.accuracy_percent for kind in kinds.values()]
        results = Results(
            model=name or opened_as,
            data=described(data),
            data_fingerprint=_fingerprint(samples, predictions, asked, bad),
            rows=len(samples),
            questions=total.questions,
            right=total.right,
            accuracy_percent=total.accuracy_percent,
            kinds=kinds,
            mean_over_kinds_percent=sum(accuracies) / len(accuracies) if accuracies else None,
            questions_without_kind=sum(prediction.kind is None for prediction in predictions),
            truncated=sum(prediction.truncated for prediction in predictions),
            generation=greedy(loaded, max_new_tokens).to_diff_dict() | {"do_sample": False, "batch_size": batch_size},
            image_backend=f"{type(images).__name__} ({images.backend})",
            device=loaded.device.type,
            dtype=str(loaded.dtype).removeprefix("torch."),
            versions=versions("torch", "transformers", "tokenizers", "pillow"),
            seconds=round(seconds, 3),
            bad_rows=len({one.sample for one in bad}),
            skipped=tuple(Skipped(one.id, one.reason) for one in bad),
            generation_set_aside=set_aside(loaded),
            metrics=count_metrics(predictions),
            intervals_percent=intervals(predictions),
            predictions=tuple(predictions),
        )
        if output is not None and tells:
            results.save(output)
    if results.truncated and tells:
        logger.warning(
            "%d of %d answers were cut at max_new_tokens=%d", results.truncated, results.questions, max_new_tokens
        )
    return results


def _ask(
    model: PreTrainedModel, processor: ProcessorMixin, samples: Dataset, batch: list[Question], max_new_tokens: int
) -> tuple[list[Prediction], list[Bad]]:
    """The answers to the questions that can be read, and those that cannot."""
    conversations: list[dict[str, Any]] = [prompt(samples[question.sample], question.turn) for question in batch]
    bad: list[Bad] = []
    try:
        given = answers(model, processor, conversations, max_new_tokens=max_new_tokens)
    except SampleError:
        problems = reading_problems(model, processor, conversations)
        bad = [Bad(q.id, q.sample, problem) for q, problem in zip(batch, problems, strict=True) if problem]
        batch = [question for question, problem in zip(batch, problems, strict=True) if not problem]
        conversations = [one for one, problem in zip(conversations, problems, strict=True) if not problem]
        given = answers(model, processor, conversations, max_new_tokens=max_new_tokens) if conversations else []
    if len(given) != len(batch):
        raise RuntimeError(f"{len(batch)} questions were asked and {len(given)} answers came back")
    return [
        Prediction(
            question.id,
            question.kind,
            question.text,
            question.expected,
            answer.text,
            False,  # until it is scored
            answer.truncated,
            pictures=tuple(image["path"] for image in sample["images"] if image["path"] is not None),
            about=about(sample),
            accepted=question.accepted,
            metric=str(question.metric),
        )
        for question, answer, sample in zip(batch, given, conversations, strict=True)
    ], bad


def _fingerprint(samples: Dataset, given: list[Prediction], asked: list[Question], bad: list[Bad]) -> str:
    """Of the samples of which something was asked; without what could not be."""
    answered = {prediction.id for prediction in given}
    kept = sorted({question.sample for question in asked if question.id in answered})
    left_out = [one.id for one in bad if one.sample in set(kept)]
    return fingerprint(samples if len(kept) == len(samples) else samples.select(kept), left_out)
