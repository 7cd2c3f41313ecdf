"""Recipes whose teacher has a cache, small enough for a test."""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lives import FILE_EVENTS
from run_files import write_data, write_model
from safetensors import safe_open
from tiny_tokenizers import other_processor, sentencepiece_tokenizer

from switchkd.data import store_shards
from switchkd.data.teacher_store import TeacherStore
from switchkd.recipe.schema import Recipe, build_recipe, load_recipe
from switchkd.train.context import RunContext, StageContext
from switchkd.train.stage import open_run, open_stage
from switchkd.train.teacher_cache import make_caches
from switchkd.train.teachers import Teachers

ROWS = 6


def write_pair(folder: Path, *, apart: bool = False) -> None:
    """A teacher, a student, and rows; `apart`: the student differs in template, tokenizer, resolution, and width of features."""
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    if apart:
        processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
        write_model(folder / "student", seed=2, processor=processor, width=48, vocabulary=448, image_size=48)
    else:
        write_model(folder / "student", seed=2)
    write_data(folder / "data" / "train.json", ROWS)


def recipe_of(
    folder: Path, method: str | dict = "kd", *, cache: str | None = "cache", teacher=None, **sections
) -> Recipe:
    """Its recipe, of plain values; with or without the cache."""
    tree = {
        "teacher": {"path": str(folder / "teacher"), **(teacher or {})},
        "student": {"path": str(folder / "student")},
        "method": method,
        "data": {"train": str(folder / "data" / "train.json"), "max_length": 256},
        "train": {"output": str(folder / "run"), "max_steps": 2, "per_device_train_batch_size": 2, "report_to": []},
        "pair": {"fit_rows": 4},
    }
    if cache is not None:
        tree["teacher"]["cache"] = str(folder / cache)
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section if isinstance(section, dict) else section
    return build_recipe(tree, "test")


def opened(recipe: Recipe, scratch: Path) -> StageContext:
    """The first stage, ready to run."""
    return open_stage(open_run(recipe), recipe.resolved_stages()[0], scratch)


def renamed(run: RunContext, recipe: Recipe, store: TeacherStore | None = None) -> RunContext:
    """An open run for a recipe that describes the same teacher in another section: nothing is loaded anew."""
    (known,) = run.teachers
    (weights,) = run.teachers.weights_for(run.recipe.resolved_stages()[0]).values()
    teachers = Teachers([replace(known, section=recipe.teacher, store=store)], lambda section, head_alone: weights)
    return replace(run, recipe=recipe, teachers=teachers)


def without_cache(recipe: Recipe) -> Recipe:
    """The same recipe, whose teacher is asked."""
    return replace(recipe, teacher=replace(recipe.teacher, cache=None, cache_logits=None))


def contents(cache: Path) -> dict[str, str]:
    """File → digest of its bytes, of the index and all shards."""
    files = [cache / "cache.json", cache / "index.arrow", *sorted((cache / "shards").iterdir())]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def fill(tell: Callable[..., None], recipe: str, operation: int | None, after_seconds: float | None) -> None:
    """Fill a cache in a process of its own, and die before the file operation of this number, or after so many seconds."""
    store_shards._SHARD_ROWS = 1
    count = 0
    shards = f"{load_recipe(recipe).teacher.cache}/"

    def before(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in FILE_EVENTS and any(isinstance(a, str | Path) and str(a).startswith(shards) for a in arguments):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(before)
    if after_seconds is not None:
        threading.Timer(after_seconds, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    begun = time.monotonic()
    (made,) = make_caches(load_recipe(recipe))
    tell("filled", made.written, count, time.monotonic() - begun)


def damaged(cache: Path) -> list[str]:
    """Entries of a cache that are not what was written, whether or not it is complete."""
    wrong = []
    for file in sorted((cache / "shards").glob("[0-9]*")) if (cache / "shards").exists() else ():
        with safe_open(file, framework="pt") as opened:
            keys, counts = json.loads(opened.metadata()["keys"]), opened.get_tensor("counts").tolist()
        if not store_shards.is_whole(cache, store_shards.Shard(file.name, tuple(keys), tuple(counts))):
            wrong.append(file.name)
    if (cache / "index.arrow").exists():
        store = TeacherStore(cache)
        for key in store._table["key"].to_pylist():
            store.read(key)
    return wrong
