"""Write the world to disk as other people's data come: PNG pictures and LLaVA JSON."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from switchkd.files import replace_folder, write_together
from switchkd.world.draw import Picture, draw
from switchkd.world.question_kinds import Question, ask
from switchkd.world.scenes import SPLITS, Difficulty, Scene, Split, scenes


def samples(seed: int, split: Split, difficulty: Difficulty) -> Iterator[tuple[Scene, list[Question], Picture]]:
    """Yield scenes of one split, their questions and pictures (uint8 [48, 48, 3]); the same ones for the same seed."""
    rng = Random(f"{seed} {split} {difficulty}")
    for scene in scenes(rng, split, difficulty):
        questions = ask(scene, rng)
        if questions is not None:
            yield scene, questions, draw(scene, rng, difficulty)


def write(
    directory: str | Path, *, train: int, validation: int, test: int, seed: int, difficulty: Difficulty = "medium"
) -> None:
    """Write as many pictures as asked for, each with one question of every kind as a conversation of several turns.

    Gives `DIR/{train,validation,test}.json` and `DIR/images/SPLIT/NNNNN.png`; a split of 0 pictures gets no file.
    No scene appears in two splits.
    Raises FileExistsError where a split's file is there already: two data sets are never mixed.
    """
    directory = Path(directory)
    for split, number in zip(SPLITS, (train, validation, test), strict=True):
        if number < 0:
            raise ValueError(f"{split}={number}: the number of pictures cannot be negative")
        if number:
            write_split(directory, split, number, _without_more(samples(seed, split, difficulty)))


def once(folder: Path, make: Callable[[Path], object]) -> None:
    """Fill `folder` by `make`, complete or not at all, unless it is there already."""
    if not folder.exists():
        with replace_folder(folder) as staging:
            make(staging)


#: Questions about a picture, the picture, and what else is kept in its row.
Asked = tuple[list[Question], np.ndarray, dict[str, Any]]


def _without_more(drawn: Iterator[tuple[Scene, list[Question], Picture]]) -> Iterator[Asked]:
    for _, questions, picture in drawn:
        yield questions, picture, {}


def write_split(directory: Path, split: Split, number: int, drawn: Iterator[Asked]) -> None:
    """Write the first `number` of what is drawn.

    Raises FileExistsError where the split's file is there already.
    """
    file = directory / f"{split}.json"
    if file.exists():
        raise FileExistsError(f"{file} exists: give an empty directory, or delete the old data set first")
    (directory / "images" / split).mkdir(parents=True, exist_ok=True)
    conversations = []
    for index, (questions, picture, more) in zip(range(number), drawn, strict=False):
        image = f"images/{split}/{index:05d}.png"
        Image.fromarray(picture).save(directory / image)
        conversations.append(_sample(f"{split}-{index:05d}", image, questions) | more)
    write_together({file: json.dumps(conversations, indent=1) + "\n"})


def _sample(name: str, image: str, questions: list[Question]) -> dict[str, Any]:
    turns = []
    for index, question in enumerate(questions):
        turns.append({"from": "human", "value": ("<image>\n" if index == 0 else "") + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    kinds = [question.kind for question in questions]
    return {"id": name, "image": image, "conversations": turns, "kinds": kinds}
