"""Folders as runs, evaluations and studies leave them, with whatever texts a test wants in them."""

import json
from pathlib import Path

import yaml
from PIL import Image

from switchkd.results import Prediction, Results
from switchkd.results.score import Score

KINDS = ("colour", "count", "shape")
LOSSES = [
    {"step": step, "loss": 4 / step, "ce": 2 / step, "align": 2 / step, "knee_teacher": 9.0, "knee_student": 8.0}
    for step in (1, 2, 3)
]


def write_results(
    file: Path, right: str, *, texts=lambda name: name, model: str = "m", data: str = "none.json", kinds=KINDS
) -> None:
    """Two questions of each kind; `right` says of each question in order whether the answer is: `1` or `0`."""
    marks = [mark == "1" for mark in right]
    asked = [(f"{kind}-{i}", kind) for kind in kinds for i in range(2)]
    assert len(marks) == len(asked)
    scores = {}
    for kind in kinds:
        right_ones = sum(mark for mark, (_, of) in zip(marks, asked, strict=True) if of == kind)
        scores[texts(kind)] = Score(questions=2, right=right_ones, accuracy_percent=50.0 * right_ones)
    Results(
        model=model,
        data=texts(data),
        data_fingerprint="f" * 64,
        rows=len(marks),
        questions=len(marks),
        right=sum(marks),
        accuracy_percent=100 * sum(marks) / len(marks),
        kinds=scores,
        mean_over_kinds_percent=sum(score.accuracy_percent for score in scores.values()) / len(scores),
        questions_without_kind=0,
        truncated=0,
        generation={"max_new_tokens": 8},
        image_backend=texts("Pil"),
        device=texts("cpu"),
        dtype="float32",
        versions={"torch": texts("2")},
        seconds=3.5,
        predictions=tuple(
            Prediction(
                texts(name),
                texts(kind),
                texts(f"what {name}?"),
                texts("yes"),
                texts("yes" if mark else "no"),
                mark,
                False,
            )
            for mark, (name, kind) in zip(marks, asked, strict=True)
        ),
    ).save(file)


def write_benchmarks(file: Path, percents: dict[str, float], average: float | None) -> None:
    """Results of benchmarks, title → percent."""
    entry = {
        "score": 0.0, "unit": "percent", "out_of": 100.0, "samples": 1, "published_samples": 1, "truncated": 0, "unparsable": None,
        "metrics": {}, "prompt": "", "prompt_settings": {}, "max_new_tokens": 8, "data": "", "data_fingerprint": "", "paper": "",
        "seconds": 1.0,
    }  # fmt: skip
    results = {
        "model": "m", "benchmarks": {name.lower(): entry | {"title": name, "percent": value} for name, value in percents.items()},
        "average": average, "complete": False, "generation": {}, "image_backend": "Pil", "device": "cpu", "dtype": "float32",
        "versions": {}, "seconds": 1.0,
    }  # fmt: skip
    file.write_text(json.dumps(results))


def write_fake_run(folder: Path, right: str | None, *, method: str = "sft", texts=lambda name: name, **results) -> Path:
    """A run of one stage; without results where `right` is None."""
    recipe = {
        "teacher": {"path": "teacher"}, "student": {"path": texts("start")}, "method": {"name": method},
        "data": {"train": texts("train.json")}, "train": {"output": str(folder)}, "stages": [{"name": "train", "method": None}],
    }  # fmt: skip
    stage = folder / "1-train"
    stage.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    lines = [*LOSSES, {"step": 3, "train_runtime": 6.0}]
    (stage / "metrics.jsonl").write_text(
        "".join(json.dumps({texts(k): v for k, v in line.items()} | line) + "\n" for line in lines)
    )
    if right is not None:
        write_results(folder / "results.json", right, texts=texts, **results)
    return folder


def write_questions(folder: Path, *, texts=lambda name: name) -> Path:
    """The questions that `write_results` answers, each about a picture of its own."""
    rows = []
    for kind in KINDS:
        for i in range(2):
            Image.new("RGB", (24, 24), "red").save(folder / f"{kind}{i}.png")
            turns = [
                {"from": "human", "value": f"<image>\n{texts(f'what {kind}-{i}?')}"},
                {"from": "gpt", "value": texts("yes")},
            ]
            rows.append(
                {"id": texts(f"{kind}-{i}"), "kind": texts(kind), "image": f"{kind}{i}.png", "conversations": turns}
            )
    (folder / "test.json").write_text(json.dumps(rows))
    return folder / "test.json"


def write_study(
    folder: Path, scores: dict[str, list[float]], *, texts=lambda name: name, rows: int | None = None
) -> Path:
    """Arm → its score with every seed; the first arm is the baseline. The runs of seed 0 have folders."""
    arms = list(scores)
    base = scores[arms[0]]
    cells, table = [], []
    for number, (arm, found) in enumerate(scores.items()):
        for seed, score in enumerate(found):
            where = f"cells/{number}/all/{seed}"
            if seed == 0:
                write_fake_run(
                    folder / where,
                    "110100" if number else "101000",
                    method="switch_kd" if number else "sft",
                    texts=texts,
                )
            cells.append(
                {"arm": texts(arm), "seed": seed, "rows": rows, "folder": where, "seconds": 10.0, "cpu_seconds": 9.0,
                 "peak_rss_bytes": 300 * 2**20, "resumed": seed == 1, "score": score,
                 "kinds": {texts("colour"): score, texts("count"): score, texts("shape"): score}}
            )  # fmt: skip
        difference = None if number == 0 else sum(x - y for x, y in zip(found, base, strict=True)) / len(found)
        table.append(
            {"arm": texts(arm), "rows": rows, "seeds": len(found), "mean": sum(found) / len(found), "sd": 1.0, "difference": difference,
             "low": difference and difference - 1, "high": difference and difference + 1,
             "differences": [], "seconds": 10.0, "cpu_seconds": 9.0, "cost": 1 + number / 2}
        )  # fmt: skip
    write_results(folder / "teachers" / "0" / "results.json", "111111", texts=texts, model="teacher")
    teachers = [{"teacher": "teacher", "seed": 0, "folder": "teachers/0", "score": 100.0, "kinds": {}}]
    (folder / "study.json").write_text(
        json.dumps(
            {"name": texts("tiny"), "baseline": texts(arms[0]), "arms": [texts(arm) for arm in arms], "seeds": list(range(len(base))),
             "baselines": {}, "rows": [], "planned": len(cells) + 1, "cells": cells, "teachers": teachers, "table": table}
        )
    )  # fmt: skip
    return folder
