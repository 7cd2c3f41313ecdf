"""Ask a model some or all of the benchmarks: load all samples, then ask, score and count one benchmark after another."""

import contextlib
import io
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, ProcessorMixin

from switchkd.agree import in_every_process
from switchkd.evaluate.benchmarks import BENCHMARKS
from switchkd.evaluate.benchmarks.benchmark_samples import load as load_samples
from switchkd.evaluate.generate import Answer, answers, given_or_loaded, greedy, set_aside
from switchkd.evaluate.kept_answers import kept_answers
from switchkd.processes import processes
from switchkd.results.benchmark_results import BenchmarkResult, BenchmarkResults, Given, answers_path
from switchkd.results.ten_way_mean import percent, ten_way_mean
from switchkd.versions import versions

if TYPE_CHECKING:
    from switchkd.evaluate.benchmarks.adapter import Model, Task

logger = logging.getLogger(__name__)
#: lmms-eval asks for packages that conflict with this project's, and needs few of them for these benchmarks; so it comes without.
INSTALL = ("pip install --no-deps lmms-eval==0.7.3", "pip install 'switchkd[eval]'")


def evaluate_benchmarks(
    model: str | Path | PreTrainedModel,
    names: Sequence[str],
    *,
    data: str | Path | None = None,
    processor: ProcessorMixin | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    output: Path | None = None,
    share: bool = False,
) -> BenchmarkResults:
    """The scores of `model` on benchmarks, greedily decoded, through lmms-eval.

    Args:
        model: a checkpoint directory, a hub name, or a model in memory (then give its `processor`).
        names: keys of `BENCHMARKS`.
        data: a folder with `NAME.parquet` or `NAME/*.parquet` for each, in the schema of lmms-eval's data set; by default
            the data sets of the hub.
        processor: by default the one saved with the model.
        batch_size: questions at a time.
        max_new_tokens: an answer is cut after so many, and counted as truncated; by default what each benchmark's task says.
        output: where to write the results JSON; the answers get a file of the same name, `.answers.jsonl`.
        share: every process of the run (`torchrun`, `accelerate launch`) calls this with the same arguments and asks its share of the
            batches; all of them return the whole results, and the main one writes them.

    Raises:
        ValueError: data that cannot be used, in whole or in one sample; a model that cannot be used.
        ImportError: lmms-eval is not installed. Whatever a generation raises is passed on: an evaluation is complete or fails,
            and writes no results if it fails. The answers made until then are kept beside `output`.
        OSError: `output` cannot be written; nothing has been asked then.
    """
    if batch_size < 1 or (max_new_tokens is not None and max_new_tokens < 1):
        raise ValueError(f"batch_size and max_new_tokens must be at least 1, got {batch_size} and {max_new_tokens}")
    if output is not None and Path(output).suffix != ".json":
        raise ValueError(f"{output}: results are written as JSON, so the name must end in .json")
    tells = not share or processes().is_main_process
    output = None if output is None else Path(output)
    begin = time.perf_counter()
    with kept_answers(output, None if output is None else answers_path(output)) as keep:
        tasks = _tasks(names, None if data is None else Path(data))
        loaded, processor, name = given_or_loaded(model, processor)
        scores: dict[str, BenchmarkResult] = {}
        given: list[Given] = []
        for task in tasks:
            scores[task.benchmark.name], answered = _run(
                task, loaded, processor, batch_size, max_new_tokens, keep, share=share
            )
            given += answered
        results = _results(loaded, processor, name, scores, given, batch_size, time.perf_counter() - begin)
        if output is not None and tells:
            results.save(output)
    return results


def _results(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    name: str,
    scores: dict[str, BenchmarkResult],
    given: list[Given],
    batch_size: int,
    seconds: float,
) -> BenchmarkResults:
    """Everything that was measured, and how."""
    images: Any = processor.image_processor
    return BenchmarkResults(
        model=name,
        benchmarks=scores,
        average=ten_way_mean({name: result.percent for name, result in scores.items()}),
        complete=all(result.samples == result.published_samples for result in scores.values()),
        generation={k: v for k, v in greedy(model, 1).to_diff_dict().items() if k != "max_new_tokens"}
        | {"do_sample": False, "batch_size": batch_size},
        image_backend=f"{type(images).__name__} ({images.backend})",
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        versions=versions("lmms-eval", "torch", "transformers", "tokenizers", "pillow"),
        seconds=round(seconds, 3),
        generation_set_aside=set_aside(model),
        given=tuple(given),
    )


def _tasks(names: Sequence[str], folder: Path | None) -> list["Task"]:
    """All samples are loaded and checked before the first question is asked."""
    try:
        version("lmms-eval")
    except PackageNotFoundError as error:
        raise ImportError(f"the benchmarks need lmms-eval; install it with: {' && '.join(INSTALL)}") from error
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of benchmark data")
    from loguru import logger as lmms_eval_log

    lmms_eval_log.disable("lmms_eval")
    from switchkd.evaluate.benchmarks.adapter import Task, upstream_config

    tasks = []
    for name in names:
        upstream = upstream_config(BENCHMARKS[name])
        settings = {**upstream, **BENCHMARKS[name].configure(upstream)}
        tasks.append(Task(BENCHMARKS[name], upstream, load_samples(BENCHMARKS[name], folder, settings)))
    return tasks


def _run(
    task: "Task",
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch_size: int,
    max_new_tokens: int | None,
    keep: Callable[[list[Any]], None],
    *,
    share: bool,
) -> tuple[BenchmarkResult, list[Given]]:
    """Ask one benchmark, and have it scored; each process that has asked its share scores all of it."""
    from switchkd.evaluate.benchmarks.adapter import Model

    def ask(samples: list[dict[str, Any]], length: int) -> list[Answer]:
        return answers(model, processor, samples, max_new_tokens=length)

    benchmark = task.benchmark
    begin = time.perf_counter()
    asked = Model(task, ask, batch_size, max_new_tokens, keep, share=share)
    metrics = in_every_process(lambda: _scored(task, asked))[0] if share else _scored(task, asked)
    seconds = time.perf_counter() - begin
    if benchmark.metric not in metrics:
        raise RuntimeError(f"{benchmark.title}: lmms-eval gave {', '.join(metrics)}, and no {benchmark.metric}")
    score = metrics[benchmark.metric] * benchmark.scale
    light = task.dataset[task.config.test_split]
    max_score = benchmark.max_score({name: light[name] for name in benchmark.columns})
    cut = sum(answer.truncated for answer in asked.given)
    if cut and (not share or processes().is_main_process):
        logger.warning(
            "%s: %d of %d answers were cut at max_new_tokens=%d",
            benchmark.title, cut, len(asked.given), asked.max_new_tokens,
        )  # fmt: skip
    unparsable = metrics.get("unparsable")
    result = BenchmarkResult(
        title=benchmark.title,
        score=score,
        unit=benchmark.unit,
        max_score=max_score,
        percent=percent(score, max_score),
        samples=len(task.samples),
        published_samples=benchmark.published_samples,
        truncated=cut,
        unparsable=None if unparsable is None else round(unparsable * len(task.samples)),
        metrics=metrics,
        prompt=asked.given[0].prompt,
        prompt_settings=dict(task.config.lmms_eval_specific_kwargs["default"]),
        max_new_tokens=asked.max_new_tokens,
        data=task.samples.where,
        data_fingerprint=asked.fingerprint,
        paper=benchmark.paper,
        seconds=round(seconds, 3),
    )
    return result, asked.given


def _scored(task: "Task", model: "Model") -> dict[str, float]:
    """The task's metrics by name. What lmms-eval prints goes to the log."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    printed = io.StringIO()
    settings = SimpleNamespace(process_with_media=False, output_path=None)
    with _alone(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        everything = simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            cli_args=settings,
            log_samples=False,
            bootstrap_iters=0,
            process_docs_parallel=1,
        )
    logger.debug("%s", printed.getvalue())
    if task.scored != len(task.samples) * len(task.filters):
        raise RuntimeError(f"{task.benchmark.title}: {len(task.samples)} samples, but lmms-eval scored {task.scored}")
    values: dict[str, Any] = everything["results"][task.benchmark.name]
    # lmms-eval names its figures METRIC,FILTER, and also lists, as empty, what the task returns but does not measure.
    names = {f"{metric},{name}": metric for metric in task.aggregation() for name in task.filters}
    return {
        metric if len(task.filters) == 1 else name: float(values[name])
        for name, metric in names.items()
        if isinstance(values.get(name), int | float)
    }


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """lmms-eval would deal out what it scores among the processes that a launcher has started, and each of them has all answers."""
    saved = {name: os.environ.pop(name, None) for name in ("WORLD_SIZE", "RANK")}
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in saved.items() if value is not None})
