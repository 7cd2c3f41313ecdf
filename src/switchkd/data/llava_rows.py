"""Canonical rows → LLaVA JSON lines, with pictures in a folder next to them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from switchkd.data.errors import DataError, SampleError
from switchkd.data.formats import Reading
from switchkd.data.forms import Row
from switchkd.data.image_marks import IMAGE_MARK, Marks
from switchkd.data.images import IMAGE_FORMATS, open_picture_file
from switchkd.data.row_videos import videos_of
from switchkd.data.sources import Data

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system"}


@dataclass
class Converted:
    """What became of the rows and pictures."""

    rows: int = 0
    #: Pictures that stay where they are, and those that were written next to the rows.
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
    if videos_of(row):
        raise SampleError(
            f"has {len(videos_of(row))} videos, which are not written here: keep this row in its own file"
        )
    turns = [_turn(message, has_images=bool(row["images"])) for message in row["messages"]]
    names = [
        _picture(image, folder, pictures / f"{done.rows:08}-{number}", done)
        for number, image in enumerate(row["images"])
    ]
    line: dict[str, Any] = {"id": row["id"]}
    if names:
        line["image"] = names if len(names) > 1 else names[0]
    if any(kind is not None for kind in row["kinds"]):
        line["kinds"] = row["kinds"]
    line |= {name: row[name] for name in ("accepted", "metric") if row[name]}
    return line | {"conversations": turns}


def _turn(message: Row, *, has_images: bool) -> dict[str, Any]:
    said = "".join(f"{IMAGE_MARK}\n" if part["type"] == "image" else part["text"] for part in message["content"])
    pictures = sum(part["type"] == "image" for part in message["content"])
    if has_images and message["role"] == "user" and len(Marks().split(said)) != 2 * pictures + 1:
        raise SampleError(f"a question holds {IMAGE_MARK} as text, which LLaVA JSON cannot say of a row with images")
    turn: dict[str, Any] = {"from": _SPEAKERS[message["role"]], "value": said}
    if message["reasoning"] is not None:
        turn["reasoning_content"] = message["reasoning"]
    if message["role"] == "assistant" and not message["learned"]:
        turn["loss"] = False
    return turn


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
