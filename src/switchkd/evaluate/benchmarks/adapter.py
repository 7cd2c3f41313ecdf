"""Between lmms-eval and this project: a task on samples that are loaded here, a model that answers through switchkd. Needs lmms-eval.

What lmms-eval does on import or by default and is undone here: Pillow would accept images that are cut off, failures of a parser would be
repeated for seconds, and samples would be read, with their images, three times.
"""
# lmms-eval ships no types
# mypy: disallow-subclassing-any=False

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lmms_eval
from datasets import DatasetDict
from PIL import ImageFile

from switchkd.evaluate.batches import ask_batches
from switchkd.evaluate.benchmarks.benchmark import Benchmark, Doc
from switchkd.evaluate.benchmarks.benchmark_samples import Samples
from switchkd.evaluate.generate import Answer
from switchkd.results.benchmark_results import Given

_TRUNCATED = ImageFile.LOAD_TRUNCATED_IMAGES
import lmms_eval.api.metrics  # noqa: E402  (tasks find their metrics by name once this is imported)
from lmms_eval.api.instance import Instance  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.api.task import ConfigurableMessagesTask  # noqa: E402
from lmms_eval.utils import load_yaml_config  # noqa: E402

ImageFile.LOAD_TRUNCATED_IMAGES = _TRUNCATED


def upstream_config(benchmark: Benchmark) -> dict[str, Any]:
    """lmms-eval's configuration of the task, from the file that is installed with it."""
    file = Path(lmms_eval.__file__).parent / "tasks" / benchmark.upstream
    config: dict[str, Any] = load_yaml_config(str(file))
    return config


class Task(ConfigurableMessagesTask):
    """lmms-eval's task of a benchmark, on samples that were loaded and checked before."""

    def __init__(self, benchmark: Benchmark, upstream: Mapping[str, Any], samples: Samples) -> None:
        self.benchmark = benchmark
        self.samples = samples
        self.scored = 0
        super().__init__(config={**upstream, "task": benchmark.name, **benchmark.configure(upstream)})

    def download(self, dataset_kwargs: Any = None) -> None:
        """Nothing: the samples are there. None of lmms-eval's steps needs images."""
        light = self.samples.table.select_columns(list(self.benchmark.columns))
        self.dataset = self.dataset_no_image = DatasetDict({self.config.test_split: light})

    def build_all_requests(self, **options: Any) -> None:
        """One request for each sample, with nothing read yet."""
        split = self.config.test_split
        self._instances = [
            self.construct_requests(
                number, "", metadata={"task": self.benchmark.name, "doc_id": number, "repeats": 1, "split": split}
            )
            for number in range(len(self.samples))
        ]

    def process_results(self, doc: Doc, results: list[str], full_docs: Any = None) -> dict[str, Any]:
        """lmms-eval's scoring of one answer, tried once."""
        score = ConfigurableMessagesTask.process_results.__wrapped__
        scored: dict[str, Any] = score(self, self.benchmark.prepare(doc), results)
        self.scored += 1
        return scored

    @property
    def filters(self) -> list[str]:
        """The names of the task's filters, through which its answers are read: `none` where it has none."""
        return [one.name for one in self._filters]

    def conversation(self, number: int) -> dict[str, Any]:
        """The sample as a model is asked it."""
        doc = self.benchmark.prepare(self.samples.doc(number))
        parts, images = self.benchmark.ask(doc, self.doc_to_text(doc))
        return {
            "id": self.samples.name(number),
            "images": images,
            "messages": [{"role": "user", "content": parts}],
        }


class _Asked(NamedTuple):
    """An answer, and a digest of what was asked."""

    given: Given
    digest: bytes


class Model(lmms):
    """Any model that answers samples, as lmms-eval calls it: asked as soon as it is made, each process its share.

    Args:
        task: what is asked.
        answers: given samples and the most tokens of an answer, one answer for each sample.
        batch_size: samples at a time.
        max_new_tokens: longer answers are cut; by default what the task says.
        keep: is given every answer of this process as soon as it is made.
        share: every process of the run makes one, asks its share, and has all answers.

    Raises:
        Exception: whatever `answers` raises, in whichever process.
    """

    is_simple = False

    def __init__(
        self,
        task: Task,
        answers: Callable[[list[dict[str, Any]], int], list[Answer]],
        batch_size: int,
        max_new_tokens: int | None,
        keep: Callable[[list[Given]], None],
        *,
        share: bool,
    ) -> None:
        super().__init__()
        self.task = task
        self.answers = answers
        self.keep = keep
        settings = task.config.generation_kwargs
        self.max_new_tokens = max_new_tokens or settings.get("max_new_tokens") or task.benchmark.max_new_tokens
        self.stops: list[str] = settings["until"]
        count = len(task.samples)
        batches = [list(range(begin, min(begin + batch_size, count))) for begin in range(0, count, batch_size)]
        answered = ask_batches(batches, self._ask, task.benchmark.title, shared=share)
        asked = [one for batch in answered for one in batch]
        #: What was asked and answered, in order.
        self.given = [one.given for one in asked]
        #: SHA-256 of what was asked: prompts and the bytes of every image.
        self.fingerprint = hashlib.sha256(b"".join(one.digest for one in asked)).hexdigest()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request."""
        return [self.given[request.doc_id].answer for request in requests]

    def _ask(self, numbers: list[int]) -> list[_Asked]:
        samples = [self.task.conversation(number) for number in numbers]
        given = self.answers(samples, self.max_new_tokens)
        if len(given) != len(samples):
            raise RuntimeError(f"{len(samples)} questions were asked and {len(given)} answers came back")
        asked = [self._noted(sample, answer) for sample, answer in zip(samples, given, strict=True)]
        self.keep([one.given for one in asked])
        return asked

    def _noted(self, sample: dict[str, Any], answer: Answer) -> _Asked:
        """The answer up to the first of the task's stops."""
        text = answer.text.strip()
        for stop in self.stops:
            text = text.split(stop)[0]
        parts = sample["messages"][0]["content"]
        prompt = "".join("<image>" if part["type"] == "image" else part["text"] for part in parts)
        digests = [hashlib.sha256(json.dumps(parts).encode()).digest()]
        digests += [hashlib.sha256(image["bytes"]).digest() for image in sample["images"]]
        given = Given(self.task.benchmark.name, sample["id"], prompt, text.strip(), answer.truncated)
        return _Asked(given, b"".join(digests))

    def clean(self) -> None:
        """Nothing: the model answers the next benchmark too."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not asked for by any benchmark here."""
        raise NotImplementedError("the benchmarks generate")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not asked for by any benchmark here."""
        raise NotImplementedError("the benchmarks ask once")
