"""Samples of conversations → questions that are asked one at a time, each alone with its sample's images."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from switchkd.data.errors import DataError
from switchkd.data.row_videos import video_files, videos_of


@dataclass(frozen=True)
class Question:
    """One question of sample number `sample`. `turn` is the index of the user's message, `kind` what the data calls this question."""

    id: str
    sample: int
    turn: int
    text: str
    expected: str
    kind: str | None
    #: All answers that are right, where there are more than `expected`; and how the row says they are scored.
    accepted: tuple[str, ...] = ()
    metric: str | None = None
    #: Of its sample, videos included, all of which it is asked with.
    pictures: int = 0

    @property
    def length(self) -> tuple[int, int]:
        """What is known of how much a model reads, before anything is opened: pictures and characters."""
        return self.pictures, len(self.text)


@dataclass(frozen=True)
class Bad:
    """Why sample number `sample` cannot be asked, or its question `id`, where only that one cannot."""

    id: str
    sample: int
    reason: str


def questions(samples: Dataset) -> tuple[list[Question], list[Bad]]:
    """Every question of the samples that has an answer to compare with, in order; and the samples that cannot be used.

    A sample with several questions gives them the ids `ID/1`, `ID/2` …; one that another question has gets `#` and the sample's
    number. A sample that asks nothing, or has an answer that is empty or follows no
    question, cannot be used.
    """
    asked: list[Question] = []
    bad: list[Bad] = []
    names: set[str] = set()
    for number, sample in enumerate(
        samples.remove_columns([name for name in ("images", "videos") if name in samples.column_names])
    ):
        try:
            of_sample = _of_sample(sample, number)
        except DataError as error:
            bad.append(Bad(sample["id"], number, str(error)))
            continue
        for question in of_sample:
            name = question.id
            while name in names:
                name = f"{name}#{number}"
            names.add(name)
            asked.append(replace(question, id=name))
    return asked, bad


def check_share(bad: Sequence[Bad], samples: int, max_bad_fraction: float) -> None:
    """Raise DataError where more than this share of the samples is bad, or every one of them."""
    count = len({one.sample for one in bad})
    if count == samples or count > max_bad_fraction * samples:
        examples = "; ".join(one.reason for one in bad[:3])
        raise DataError(
            f"{count} of {samples} rows ({count / max(samples, 1):.1%}) cannot be asked, more than the allowed {max_bad_fraction:.1%}. "
            f"First: {examples}. Repair the data, or raise max_bad_fraction"
        )


def _of_sample(sample: dict[str, Any], number: int) -> list[Question]:
    if sample["problem"]:
        raise DataError(f"sample {sample['id']!a}: {sample['problem']}")
    turns = [index for index, message in enumerate(sample["messages"]) if message["role"] == "assistant"]
    if not turns:
        raise DataError(f"sample {sample['id']!a}: has no answer to compare with")
    pictures = sum(part["type"] != "text" for message in sample["messages"] for part in message["content"])
    asked = []
    for position, (turn, kind) in enumerate(zip(turns, sample["kinds"], strict=True), start=1):
        if turn == 0 or sample["messages"][turn - 1]["role"] != "user":
            raise DataError(f"sample {sample['id']!a}: answer {position} follows no question")
        expected = text_of(sample["messages"][turn])
        if not expected.strip():
            raise DataError(f"sample {sample['id']!a}: answer {position} is empty, so nothing can be compared with it")
        name = sample["id"] if len(turns) == 1 else f"{sample['id']}/{position}"
        question = text_of(sample["messages"][turn - 1])
        accepted = tuple(sample["accepted"])
        asked.append(Question(name, number, turn - 1, question, expected, kind, accepted, sample["metric"], pictures))
    return asked


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, without its images."""
    return "".join(part["text"] or "" for part in message["content"]).strip()


def prompt(sample: dict[str, Any], turn: int) -> dict[str, Any]:
    """The sample with the message `turn` alone (behind a system message, if it begins with one) and all of the sample's images and videos.

    They keep their places where the message holds all of them, and come first where it does not: a later question about the same.
    """
    asked = sample["messages"][turn]
    shown = {"image": len(sample["images"]), "video": len(videos_of(sample))}
    if any(sum(part["type"] == kind for part in asked["content"]) != count for kind, count in shown.items()):
        first = [{"type": kind, "text": None} for kind, count in shown.items() for _ in range(count)]
        asked = {"role": "user", "content": first + [part for part in asked["content"] if part["type"] == "text"]}
    system = [message for message in sample["messages"][:1] if message["role"] == "system"]
    return {**sample, "messages": [*system, asked]}


def about(sample: dict[str, Any]) -> str:
    """The same for samples with the same pictures and videos; of one without any its id."""
    shown = _shown(sample)
    if not shown:
        return str(sample["id"])
    digest = hashlib.sha256()
    for image in shown:
        digest.update(hashlib.sha256(_content(image)).digest())
    return digest.hexdigest()[:32]


def _shown(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """All files of a sample, inside the data or not: pictures, videos and frames of videos."""
    shown = list(sample["images"])
    for video in videos_of(sample):
        shown += video["frames"] or [{"bytes": None, "path": file} for file in video_files(video)] or [video]
    return shown


def _content(image: dict[str, Any]) -> bytes:
    content: bytes = Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"]
    return content


def fingerprint(samples: Sequence[dict[str, Any]] | Dataset, left_out: Sequence[str] = ()) -> str:
    """SHA-256 of what is asked: ids, messages, kinds and the bytes of every image and video; not of paths or the file's format.

    Args:
        samples: what is asked.
        left_out: ids of questions of these samples that are not.
    """
    digest = hashlib.sha256()
    for sample in samples:
        said = [{name: message[name] for name in ("role", "content")} for message in sample["messages"]]
        scored = [sample[name] for name in ("accepted", "metric") if sample[name]]
        text = json.dumps([sample["id"], said, sample["kinds"], *scored], sort_keys=True)
        digest.update(hashlib.sha256(text.encode()).digest())
        for image in _shown(sample):
            digest.update(hashlib.sha256(_content(image)).digest())
    for name in left_out:
        digest.update(hashlib.sha256(name.encode()).digest())
    return digest.hexdigest()
