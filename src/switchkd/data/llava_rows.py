"""Canonical rows → LLaVA JSON lines, with pictures and videos in a folder next to them."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from switchkd.data.errors import DataError, SampleError
from switchkd.data.formats import Reading
from switchkd.data.forms import Row
from switchkd.data.image_marks import IMAGE_MARK, VIDEO_MARK, Marks
from switchkd.data.images import IMAGE_FORMATS, checked_file, open_picture_file
from switchkd.data.row_videos import listed_frames, videos_of
from switchkd.data.sources import Data

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


@dataclass
class Converted:
    """What became of the rows and pictures."""

    rows: int = 0
    #: Pictures and videos that stay where they are, and those that were written next to the rows.
    referenced: int = 0
    written: int = 0
    #: Why rows were left out.
    left_out: list[str] = field(default_factory=list)


def write_llava(
    data: Data, output: Path, image_root: str | Path | None = None, columns: Mapping[str, str] | None = None
) -> Converted:
    """Write rows as LLaVA JSON lines that read back as the same rows.

    Pictures in files below the output's folder are referenced; others are written into a folder of the output's name. Rows that cannot be
    used are left out.

    Args:
        data: anything `load_rows` reads; the last arguments too.
        output: a new file, .jsonl.
        image_root: the folder that image paths begin in.
        columns: our names of columns → the data's.

    Raises:
        DataError: as `load_rows`; the output is there already; or no row is left.
    """
    pictures = output.parent / f"{output.stem}-pictures"
    if output.suffix != ".jsonl":
        raise DataError(f"{output}: JSON lines are written, so the name must end in .jsonl")
    if taken := next((path for path in (output, pictures) if path.exists()), None):
        raise DataError(f"{taken} is there already: choose another output, or remove it")
    done = Converted()
    reading = Reading(data, image_root, columns or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        with staging.open("w", encoding="utf-8") as file:
            for row in reading.rows():
                try:
                    line = llava_line(row, output.parent.resolve(), pictures, done)
                except (SampleError, OSError) as error:
                    done.left_out.append(row["problem"] or f"{row['source']} (id {row['id']!a}): {error}")
                    continue
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                done.rows += 1
        if not done.rows:
            raise DataError(f"no row is left; {done.left_out[0]}")
        staging.replace(output)
    finally:
        staging.unlink(missing_ok=True)
    return done


def llava_line(row: Row, folder: Path, pictures: Path, done: Converted) -> dict[str, Any]:
    """A canonical row as LLaVA JSON. Its pictures are written to `pictures` unless they lie in `folder`.

    Raises:
        SampleError: for one that cannot be said like that.
    """
    if row["problem"]:
        raise SampleError(row["problem"])
    shown = Marks(Marks().pattern if row["images"] else None, videos=bool(videos_of(row)))
    turns = [_turn(message, shown) for message in row["messages"]]
    names = [
        _picture(image, folder, pictures / f"{done.rows:08}-{number}", done)
        for number, image in enumerate(row["images"])
    ]
    films = [
        _video(video, folder, pictures / f"{done.rows:08}-video-{number}", done)
        for number, video in enumerate(videos_of(row))
    ]
    line: dict[str, Any] = {"id": row["id"]}
    if names:
        line["image"] = names if len(names) > 1 else names[0]
    if films:
        line["videos"] = films
    if any(kind is not None for kind in row["kinds"]):
        line["kinds"] = row["kinds"]
    line |= {name: row[name] for name in ("accepted", "metric", "teacher") if row[name]}
    return line | {"conversations": turns}


def _turn(message: Row, shown: Marks) -> dict[str, Any]:
    marks = {"image": f"{IMAGE_MARK}\n", "video": f"{VIDEO_MARK}\n"}
    said = "".join(marks.get(part["type"]) or part["text"] for part in message["content"])
    count = sum(part["type"] != "text" for part in message["content"])
    if message["role"] == "user" and len(shown.split(said)) != 2 * count + 1:
        mark, media = (VIDEO_MARK, "videos") if shown.pattern is None else (IMAGE_MARK, "images")
        raise SampleError(f"a question holds {mark} as text, which LLaVA JSON cannot say of a row with {media}")
    turn: dict[str, Any] = {"from": _SPEAKERS[message["role"]], "value": said}
    if message["reasoning"] is not None:
        turn["reasoning_content"] = message["reasoning"]
    if message["role"] == "assistant" and not message["learned"]:
        turn["loss"] = False
    return turn


def _video(video: Row, folder: Path, target: Path, done: Converted) -> str | list[str]:
    """What the row calls its video: a file, or all its frames; written to `target` where they are not below the folder already."""
    path = video["path"]
    frames = video["frames"] or (listed_frames(Path(path)) if path is not None and Path(path).is_dir() else [])
    if frames:
        names = [target.with_name(f"{target.name}-{number:05}") for number in range(len(frames))]
        return [_picture(frame, folder, name, done) for frame, name in zip(frames, names, strict=True)]
    with checked_file(video, "its video") as file:
        if path is not None and Path(path).is_relative_to(folder):
            done.referenced += 1
            return Path(path).relative_to(folder).as_posix()
        file_name = target.with_name(target.name + ("" if path is None else Path(path).suffix))
        file_name.parent.mkdir(exist_ok=True)
        with file_name.open("wb") as copy:
            shutil.copyfileobj(file, copy)
    done.written += 1
    return f"{file_name.parent.name}/{file_name.name}"


def _picture(image: Row, folder: Path, target: Path, done: Converted) -> str:
    """What the row calls its picture, which is written to `target` where it is not below the folder already."""
    with open_picture_file(image) as file:
        path = image["path"]
        if path is not None and Path(path).is_relative_to(folder):
            done.referenced += 1
            return Path(path).relative_to(folder).as_posix()
        content = file.read()
    try:
        with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as picture:
            kind = str(picture.format).lower()
    except Exception as error:  # whatever broke inside of Pillow
        raise SampleError(f"a picture cannot be read: {error}") from error
    file_name = target.with_name(f"{target.name}.{kind.replace('jpeg', 'jpg')}")
    file_name.parent.mkdir(exist_ok=True)
    file_name.write_bytes(content)
    done.written += 1
    return f"{file_name.parent.name}/{file_name.name}"
