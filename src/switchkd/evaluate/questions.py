"""Rows of conversations → questions that are asked one at a time, each alone with its row's images."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from switchkd.data.errors import DataError


@dataclass(frozen=True)
class Question:
    """One question of a row. `turn` is the index of the user's message, `kind` what the row calls this question."""

    id: str
    row: int
    turn: int
    text: str
    expected: str
    kind: str | None


def questions(rows: Dataset) -> list[Question]:
    """Every question of the rows that has an answer to compare with, in order.

    A row with several questions gives them the ids `ID/1`, `ID/2` …

    Raises:
        DataError: a row that cannot be used or asks nothing, an answer that no question precedes, an empty answer, or no
            rows. An evaluation leaves nothing out.
    """
    found: list[Question] = []
    for number, row in enumerate(rows.remove_columns("images")):
        if row["problem"]:
            raise DataError(f"sample {row['id']!a}: {row['problem']}")
        found += _of_row(row, number)
    if not found:
        raise DataError("there is no question to ask: the data has no rows")
    return found


def _of_row(row: dict[str, Any], number: int) -> list[Question]:
    turns = [index for index, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    if not turns:
        raise DataError(f"sample {row['id']!a}: has no answer to compare with")
    found = []
    for position, (turn, kind) in enumerate(zip(turns, row["kinds"], strict=True), start=1):
        if turn == 0 or row["messages"][turn - 1]["role"] != "user":
            raise DataError(f"sample {row['id']!a}: answer {position} follows no question")
        expected = text_of(row["messages"][turn])
        if not expected.strip():
            raise DataError(f"sample {row['id']!a}: answer {position} is empty, so nothing can be compared with it")
        name = row["id"] if len(turns) == 1 else f"{row['id']}/{position}"
        found.append(Question(name, number, turn - 1, text_of(row["messages"][turn - 1]), expected, kind))
    return found


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, without its images."""
    return "".join(part["text"] or "" for part in message["content"]).strip()


def prompt(row: dict[str, Any], turn: int) -> dict[str, Any]:
    """The row with the message `turn` alone (behind a system message, if it begins with one) and all of the row's images.

    The images keep their places where the message holds all of them, and come first where it does not: a later
    question about the same images.
    """
    asked = row["messages"][turn]
    if sum(part["type"] == "image" for part in asked["content"]) != len(row["images"]):
        images = [{"type": "image", "text": None} for _ in row["images"]]
        asked = {"role": "user", "content": images + [part for part in asked["content"] if part["type"] != "image"]}
    system = [message for message in row["messages"][:1] if message["role"] == "system"]
    return {**row, "messages": [*system, asked]}


def fingerprint(rows: Sequence[dict[str, Any]] | Dataset) -> str:
    """SHA-256 of what is asked: ids, messages, kinds and the bytes of every image; not of paths or the file's format."""
    digest = hashlib.sha256()
    for row in rows:
        text = json.dumps([row["id"], row["messages"], row["kinds"]], sort_keys=True)
        digest.update(hashlib.sha256(text.encode()).digest())
        for image in row["images"]:
            content = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
