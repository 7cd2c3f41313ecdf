"""The videos of a row as people write them: files, folders of frames, or lists of frames."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from switchkd.data.errors import SampleError
from switchkd.data.lost_content import says_something

Row = dict[str, Any]

#: A list of such names is one video; a GIF is a video by itself.
_FRAME_NAME = re.compile(r"\.(png|jpe?g|webp|bmp|tiff?|ppm)$", re.IGNORECASE)
#: Pictures in a folder of frames.
FRAME_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
#: How files of pictures begin.
_FRAME_BEGINNINGS = (b"\x89PNG", b"\xff\xd8", b"BM", b"II*\0", b"MM\0*")


def video_list(columns: Row, picture: Callable[[Any], Row]) -> list[Row]:
    """The videos of a row, under `video` or `videos`: one or a list of what `video` reads, or one list of frames under `video`.

    Args:
        columns: of the row.
        picture: makes a canonical picture of a frame.

    Raises:
        SampleError: it is something else, or both keys say something.
    """
    given = [
        key for key in ("video", "videos") if says_something(columns.get(key)) or isinstance(columns.get(key), Path)
    ]
    if len(given) > 1:
        raise SampleError("has both `video` and `videos`; keep one")
    if not given:
        return []
    value = columns[given[0]]
    if not isinstance(value, list) or (given == ["video"] and all(map(_is_frame, value))):
        return [video(value, picture)]
    return [video(one, picture) for one in value]


def video(value: Any, picture: Callable[[Any], Row]) -> Row:
    """A path of a file or of a folder of frames, bytes, `{bytes, path}`, or a list of frames in their order, each as an image is written.

    Raises:
        SampleError: it is something else.
    """
    if isinstance(value, list):
        if not value or not all(map(_is_frame, value)):
            other = next((frame for frame in value if not _is_frame(frame)), value)
            raise SampleError(
                f"a video that is a list must hold its frames, each a picture (.png, .jpg, …), as under `images`, "
                f"not {other!a:.80}; list several videos under `videos`"
            )
        return {"bytes": None, "path": None, "frames": [picture(frame) for frame in value]}
    if isinstance(value, str | Path):
        value = {"bytes": None, "path": str(value)}
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if not isinstance(content, bytes) and not (content is None and isinstance(name, str)):
        raise SampleError(
            f"a video must be a path, bytes, an object with `bytes` or `path`, or a list of frames, not {value!a:.80}"
        )
    if content is None and _is_frame(value):
        raise SampleError(f"its video {name!a:.200} is one picture: list all its frames, or name a video file")
    return {"bytes": content, "path": None if content is not None else name, "frames": []}


def videos_of(row: Row) -> list[Row]:
    """The videos of a canonical row; of rows that were made without that column, none."""
    return row.get("videos") or []


def shown_number(row: Row) -> int:
    """How many pictures and videos a canonical row has."""
    return len(row["images"]) + len(videos_of(row))


def embedded_bytes(row: Row) -> int:
    """How much of its pictures and videos a canonical row carries itself."""
    media = [*row["images"], *videos_of(row), *(frame for one in videos_of(row) for frame in one["frames"])]
    return sum(len(one["bytes"] or b"") for one in media)


def video_files(video: dict[str, Any]) -> list[str]:
    """The files of a video that is not inside the data; of a folder those that are its frames."""
    if video["bytes"] is not None or video["path"] is None:
        return []
    path = Path(video["path"])
    return [str(frame["path"]) for frame in listed_frames(path)] if path.is_dir() else [str(path)]


def listed_frames(folder: Path) -> list[dict[str, Any]]:
    """The pictures in a folder, in the order of their names, numbers in them by their size."""
    names = sorted((name for name in os.listdir(folder) if name.lower().endswith(FRAME_FILES)), key=_by_number)
    return [{"bytes": None, "path": str(folder / name)} for name in names]


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _is_frame(value: Any) -> bool:
    if isinstance(value, Image.Image):
        return True
    if isinstance(value, str | Path):
        return _FRAME_NAME.search(str(value)) is not None
    if isinstance(value, bytes):
        return value.startswith(_FRAME_BEGINNINGS)
    if not isinstance(value, dict):
        return False
    content, name = value.get("bytes"), value.get("path")
    return _is_frame(content) if isinstance(content, bytes) else isinstance(name, str) and _is_frame(name)
