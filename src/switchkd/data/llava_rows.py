"""Canonical rows → LLaVA JSON lines, with pictures and videos in a folder next to them."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
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
from switchkd.files import replace_folder, whole_file

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


@dataclass(frozen=True)
class Media:
    """Where the pictures and videos of rows go."""

    #: Files below it are referenced, from it.
    root: Path
    #: Others are written into this folder, which rows call `name`; made where it is missing.
    folder: Path
    name: str


@dataclass
class _Kept:
    """The pictures and videos of one row."""

    media: Media
    #: What the names of its files begin with.
    begin: str
    referenced: int = 0
    written: int = 0
    files: list[Path] = field(default_factory=list)

    def referred(self, path: str | None) -> str | None:
        """What a row calls a file below the root; None where it has to be written."""
        if path is None or not Path(path).is_relative_to(self.media.root):
            return None
        self.referenced += 1
        return Path(path).relative_to(self.media.root).as_posix()

    def write(self, name: str, content: Iterable[bytes]) -> str:
        """Write a file, and say what the row calls it. Raises OSError where it cannot be written."""
        file_name = self.media.folder / f"{self.begin}-{name}"
        file_name.parent.mkdir(exist_ok=True)
        self.files.append(file_name)
        with file_name.open("wb") as file:
            file.writelines(content)
        self.written += 1
        return f"{self.media.name}/{file_name.name}"


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
        OSError: the disk takes no more. After this and any other error there is neither the output nor the folder of pictures.
    """
    pictures = output.parent / f"{output.stem}-pictures"
    if output.suffix != ".jsonl":
        raise DataError(f"{output}: JSON lines are written, so the name must end in .jsonl")
    if taken := next((path for path in (output, pictures) if path.exists()), None):
        raise DataError(f"{taken} is there already: choose another output, or remove it")
    done = Converted()
    reading = Reading(data, image_root, columns or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with whole_file(output) as staging:
            with replace_folder(pictures) as folder, staging.open("w", encoding="utf-8") as file:
                media = Media(output.parent.resolve(), folder, pictures.name)
                for row in reading.rows():
                    try:
                        line = llava_line(row, media, done)
                    except SampleError as error:
                        done.left_out.append(row["problem"] or f"{row['source']} (id {row['id']!a}): {error}")
                        continue
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    done.rows += 1
                if not done.rows:
                    raise DataError(f"no row is left; {done.left_out[0]}")
            if not any(pictures.iterdir()):
                pictures.rmdir()
    except BaseException:
        shutil.rmtree(pictures, ignore_errors=True)  # which was not there before
        raise
    return done


def llava_line(row: Row, media: Media, done: Converted) -> dict[str, Any]:
    """A canonical row as LLaVA JSON, with its pictures and videos where `media` says; counted in `done`, but for the row itself.

    Raises:
        SampleError: for one that cannot be said like that, or whose pictures cannot be read. None of its pictures stays written.
        OSError: a picture cannot be written, which is no fault of the row.
    """
    if row["problem"]:
        raise SampleError(row["problem"])
    shown = Marks(Marks().pattern if row["images"] else None, videos=bool(videos_of(row)))
    turns = [_turn(message, shown) for message in row["messages"]]
    kept = _Kept(media, f"{done.rows:08}")
    try:
        names = [_picture(image, kept, str(number)) for number, image in enumerate(row["images"])]
        films = [_video(video, kept, f"video-{number}") for number, video in enumerate(videos_of(row))]
    except BaseException:
        for file in kept.files:
            file.unlink(missing_ok=True)
        raise
    done.referenced += kept.referenced
    done.written += kept.written
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


def _video(video: Row, kept: _Kept, name: str) -> str | list[str]:
    """What the row calls its video: a file, or all its frames; written under `name` where they are not below the folder already."""
    path = video["path"]
    with _reading("its video"):
        frames = video["frames"] or (listed_frames(Path(path)) if path is not None and Path(path).is_dir() else [])
    if frames:
        return [_picture(frame, kept, f"{name}-{number:05}") for number, frame in enumerate(frames)]
    with _reading("its video"):
        file = checked_file(video, "its video")
    with file:
        return kept.referred(path) or kept.write(name + ("" if path is None else Path(path).suffix), _blocks(file))


def _picture(image: Row, kept: _Kept, name: str) -> str:
    """What the row calls its picture, which is written under `name` where it is not below the folder already."""
    with _reading("a picture"):
        file = open_picture_file(image)
    with file:
        if referred := kept.referred(image["path"]):
            return referred
        content = b"".join(_blocks(file))
    try:
        with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as picture:
            kind = str(picture.format).lower()
    except Exception as error:  # whatever broke inside of Pillow
        raise SampleError(f"a picture cannot be read: {error}") from error
    return kept.write(f"{name}.{kind.replace('jpeg', 'jpg')}", [content])


def _blocks(file: BytesIO | BufferedReader) -> Iterator[bytes]:
    with _reading("a picture or video"):
        while block := file.read(1 << 20):
            yield block


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """An error of reading is the fault of the row; one of writing is not."""
    try:
        yield
    except OSError as error:
        raise SampleError(f"{what} cannot be read: {error}") from error
