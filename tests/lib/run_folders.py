"""Folders as runs, evaluations and studies leave them, with whatever texts a test wants in them."""

import json
from pathlib import Path

import yaml
from PIL import Image

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
        scores[texts(kind)] = {"questions": 2, "right": right_ones, "accuracy_percent": 50.0 * right_ones}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        json.dumps(
            {
                "model": model, "data": texts(data), "data_fingerprint": "f" * 64, "questions": len(marks), "kinds": scores,
                "mean_over_kinds_percent": sum(s["accuracy_percent"] for s in scores.values()) / len(scores),
                "accuracy_percent": 100 * sum(marks) / len(marks), "seconds": 3.5, "device": texts("cpu"), "dtype": "float32",
                "image_backend": texts("Pil"), "versions": {"torch": texts("2")}, "generation": {"max_new_tokens": 8},
            }
        )
    )  # fmt: skip
    lines = [
        {"id": texts(name), "kind": texts(kind), "question": texts(f"what {name}?"), "expected": texts("yes"),
         "got": texts("yes" if mark else "no"), "right": mark}
        for mark, (name, kind) in zip(marks, asked, strict=True)
    ]  # fmt: skip
    file.with_suffix(".predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


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
        apart = None if number == 0 else sum(x - y for x, y in zip(found, base, strict=True)) / len(found)
        table.append(
            {"arm": texts(arm), "rows": rows, "seeds": len(found), "mean": sum(found) / len(found), "sd": 1.0, "difference": apart,
             "low": apart and apart - 1, "high": apart and apart + 1, "seconds": 10.0, "cpu_seconds": 9.0, "cost": 1 + number / 2}
        )  # fmt: skip
    write_results(folder / "teachers" / "0" / "results.json", "111111", texts=texts, model="teacher")
    teachers = [{"teacher": "teacher", "seed": 0, "folder": "teachers/0", "score": 100.0, "kinds": {}}]
    (folder / "study.json").write_text(
        json.dumps(
            {"name": texts("tiny"), "baseline": texts(arms[0]), "arms": [texts(arm) for arm in arms], "seeds": list(range(len(base))),
             "rows": [], "planned": len(cells) + 1, "cells": cells, "teachers": teachers, "table": table}
        )
    )  # fmt: skip
    return folder
