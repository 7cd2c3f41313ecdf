"""Models and rows of which each names its teacher, small enough for a test."""

import json
from pathlib import Path

from run_files import write_data, write_model
from tiny_tokenizers import other_processor, sentencepiece_tokenizer

from switchkd.recipe.schema import Recipe, build_recipe
from switchkd.train.context import StageContext
from switchkd.train.stage import open_run, open_stage

#: Whose rows are which, in turn: three of five are taught by the first.
TURNS = ("ocr", "general", "ocr", "ocr", "general")


def write_models(folder: Path) -> None:
    """A student; two teachers that read as it does; one that reads in its own way and needs a bridge."""
    write_model(folder / "student", seed=2)
    write_model(folder / "small", seed=1, hidden=40, depth=3)
    write_model(folder / "twin", seed=4, hidden=48, depth=4)
    processor = other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8)
    write_model(folder / "foreign", seed=3, processor=processor, hidden=64, width=48, image_size=48, vocabulary=448)


def write_rows(file: Path, count: int, tags: tuple[str | None, ...] = TURNS) -> Path:
    """Pictures with questions, each with the name of its teacher; None: without one."""
    write_data(file, count)
    rows = json.loads(file.read_text())
    for number, row in enumerate(rows):
        if (tag := tags[number % len(tags)]) is not None:
            row["teacher"] = tag
    file.write_text(json.dumps(rows))
    return file


def tree_of(
    folder: Path, rows: object, output: Path, method="kd", *, ocr="small", general="foreign", **sections
) -> dict:
    """A recipe of plain values, whose two teachers are these models."""
    tree = {
        "teachers": {tag: {"path": str(folder / name)} for tag, name in (("ocr", ocr), ("general", general)) if name},
        "student": {"path": str(folder / "student")},
        "method": method,
        "data": {"train": rows if isinstance(rows, list) else str(rows), "max_length": 256},
        "train": {
            "output": str(output), "max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 1,
            "save_steps": 1, "save_total_limit": "none", "report_to": [],
        },
        "pair": {"fit_rows": 4, "min_aligned": 0.01},
    }  # fmt: skip
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section if isinstance(section, dict) else section
    return {name: section for name, section in tree.items() if section is not None}


def recipe_of(*given, **sections) -> Recipe:
    """`tree_of` as a recipe."""
    return build_recipe(tree_of(*given, **sections), "test")


def opened(recipe: Recipe, scratch: Path) -> StageContext:
    """The first stage, ready to run."""
    return open_stage(open_run(recipe), recipe.resolved_stages()[0], scratch)
