"""One row as people write it → one canonical row (`formats.FEATURES`), or the reason why it cannot be used.

What `<image>` means. In string content of a *user* turn, in a row that has images, it marks the place of an image;
there must be as many marks as images. Where no question holds one, marks of other tools are read (`image_marks`). In text
parts of list content (where `{"type": "image"}` is the mark), in answers, in system turns and in backticks it is text. In
the question of a row without images it is the trace of an image that was lost: such a row is bad. One line break after a
mark is layout, which the chat template writes by itself. A row that has its question in a column need not mark its images:
they stand before the first question. `<video>` is the same for videos, which stand behind the images where nothing is marked.
"""

import base64
import binascii
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from switchkd.data.errors import DataError, SampleError
from switchkd.data.forms import LONGEST_TAG, Row, answer_texts, read_form
from switchkd.data.image_marks import IMAGE_MARK, VIDEO_MARK, Part
from switchkd.data.images import image_path
from switchkd.data.lost_content import refuse_lost_of_row
from switchkd.data.row_videos import video, video_list
from switchkd.data.turns import carries, marks_of, read_turn
from switchkd.names import Kind

_log = logging.getLogger(__name__)

#: What marks each kind of media in a question.
_MARKS: dict[Kind, str] = {"image": IMAGE_MARK, "video": VIDEO_MARK}
#: Modes that PNG keeps; TIFF keeps the others.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")

#: How files of `images.IMAGE_FORMATS` begin.
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"BM", b"GIF8", b"II", b"MM", b"P")


@dataclass
class Noted:
    """What was found in the rows of one source, for its user."""

    #: Forms, and the columns and keys that were read, by the number of rows.
    forms: Counter[str] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    #: Keys that say something and that nobody reads, by the number of rows or turns.
    unread: Counter[str] = field(default_factory=Counter)

    def check(self, name: str, columns: Mapping[str, str]) -> None:
        """Log what nobody reads, and raise DataError where no row has a column that `columns` names."""
        for ours, theirs in columns.items():
            if ours not in self.read:
                raise DataError(f"{name}: data.columns names `{theirs}` as {ours}, and no row that can be used has it")
        if self.unread:
            listed = ", ".join(f"`{key}` ({rows:,})" for key, rows in self.unread.most_common())
            _log.warning("%s: these keys are not read (in so many rows or turns): %s", name, listed)


def row_id(raw: Any, number: int) -> str:
    """The id of a row, or its number where it has none; without half characters, which cannot be written."""
    identity = raw.get("id") if isinstance(raw, dict) else None
    return writable(str(number if identity is None else identity))


def writable(text: str) -> str:
    """The text with halves of characters spelt out."""
    return text.encode(errors="backslashreplace").decode()


def canonical_row(raw: Any, root: Path, noted: Noted, columns: Mapping[str, str], *, anywhere: bool = False) -> Row:
    """The row without `id` and `source`. Counts in `noted` what is read, and every key that says something and that nobody reads.

    A row whose image has a refused path keeps its place, without the image and with `problem` set.

    Args:
        raw: as it was written, after `forms.renamed`; or the error that came instead of it.
        root: the folder that image paths begin in.
        noted: of the source.
        columns: `data.columns`.
        anywhere: absolute paths may lead anywhere.

    Raises:
        SampleError: the row cannot be used.
    """
    if isinstance(raw, SampleError):
        raise raw
    if not isinstance(raw, dict):
        raise SampleError(f"a row must be an object, not {type(raw).__name__}")
    talk = read_form(raw, columns)
    images = _image_list(talk.columns)
    videos = video_list(talk.columns, _image)
    inside = {kind: carries(talk.turns, kind) for kind in _MARKS}
    if inside["image"] and images:
        raise SampleError("has pictures in its turns and others under `image` or `images`; keep one")
    if inside["video"] and videos:
        raise SampleError("has videos in its turns and others under `video` or `videos`; keep one")
    has_images, has_videos = bool(images) or inside["image"], bool(videos) or inside["video"]
    has_media = has_images or has_videos
    refuse_lost_of_row(talk.rest, has_images=has_media, one_question=talk.pictures_first, unread=noted.unread)
    marks = marks_of(talk.turns, len(images), has_images=has_images, has_videos=has_videos) if has_media else None
    turns = [read_turn(turn, talk.name, marks, noted.unread) for turn in talk.turns]
    if talk.pictures_first and not any(inside.values()):
        _put_first([Part(None)] * len(images) + [Part(None, kind="video")] * len(videos), turns)
    places = [part for _, parts in turns for part in parts if part.text is None]
    shown = [place for place in places if place.kind == "image"]
    images = [_image(place.carried) for place in shown] if inside["image"] else _in_order(images, shown, "image")
    shown = [place for place in places if place.kind == "video"]
    videos = [video(place.carried, _image) for place in shown] if inside["video"] else _in_order(videos, shown, "video")
    messages = _with_system(
        talk.columns.get("system"), [turn | {"content": [p.canonical for p in parts]} for turn, parts in turns]
    )
    kinds = _kinds(talk.columns, sum(message["role"] == "assistant" for message in messages))
    accepted = _accepted(talk.columns.get("accepted"), len(kinds))
    metric = talk.columns.get("metric")
    if metric is not None and not isinstance(metric, str):
        raise SampleError(f"`metric` must be the name of a metric, not {metric!a:.60}")
    _check_text(messages, [*kinds, *accepted, metric])
    problem = _resolve(images, videos, root, anywhere)
    noted.forms[talk.form] += 1
    noted.read.update(key for key in raw if key not in talk.rest)
    return {
        "images": images,
        "videos": videos,
        "messages": messages,
        "kinds": kinds,
        "accepted": accepted,
        "metric": metric,
        "teacher": _tag(talk.columns.get("teacher")),
        "problem": problem,
    }


def _tag(value: Any) -> str | None:
    """The name of the teacher. Other people's columns of that name hold other things, which no recipe with `teachers` has a name for."""
    text = value if isinstance(value, str) else None if value is None else ascii(value)
    return None if text is None else writable(text[: LONGEST_TAG + 1])


def _put_first(marks: list[Part], turns: list[tuple[Row, list[Part]]]) -> None:
    """Mark the images and videos before the first question, where there is no mark."""
    asked = next((parts for turn, parts in turns if turn["role"] == "user"), None)
    if asked is None or any(part.text is None for _, parts in turns for part in parts):
        return
    asked[:0] = marks
    if not asked or (asked == [Part("")]):
        raise SampleError("has neither a question nor a picture to ask about")


def _in_order(images: list[Row], marks: list[Part], kind: Kind) -> list[Row]:
    """The images, or the videos, in the order of their marks."""
    if len(marks) != len(images):
        raise SampleError(f"{len(marks)} {kind} marks ({_MARKS[kind]}) but {len(images)} {kind}s; they must be equal")
    indices = [mark.index for mark in marks]
    if all(index is None for index in indices):
        return images
    order = [index for index in indices if index is not None]
    if sorted(order) != list(range(len(images))):
        raise SampleError(
            f"its {kind} parts have the indices {indices}, and there are {len(images)} {kind}s, from 0, each marked once"
        )
    return [images[index] for index in order]


def _with_system(system: Any, messages: list[Row]) -> list[Row]:
    """The messages with what stands under `system` before them."""
    if system is None or system == "":
        return messages
    if not isinstance(system, str):
        raise SampleError(f"`system` must be text, not {type(system).__name__}")
    content = [{"type": "text", "text": system}]
    if messages and messages[0]["role"] == "system":
        if messages[0]["content"] != content:
            raise SampleError("has a `system` and another system turn; keep one")
        return messages
    return [{"role": "system", "reasoning": None, "learned": False, "content": content}, *messages]


def _image_list(columns: Row) -> list[Row]:
    """The images of a row: one or a list of what `_image` reads, under `image` or `images`."""
    given = [columns[key] for key in ("image", "images") if columns.get(key) is not None and columns[key] != []]
    if len(given) > 1:
        raise SampleError("has both `image` and `images`; keep one")
    value = given[0] if given else []
    return [_image(image) for image in (value if isinstance(value, list) else [value])]


def _image(image: Any) -> Row:
    """A path, a data: URL, embedded bytes, `{bytes, path}`, or a picture of Pillow's."""
    if isinstance(image, str | Path):
        return {"bytes": None, "path": str(image)}
    if isinstance(image, Image.Image):
        return {"bytes": _written(image), "path": None}
    if isinstance(image, bytes):
        image = {"bytes": image, "path": None}
    content, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
    if not isinstance(content, bytes) and not (content is None and isinstance(name, str)):
        raise SampleError(
            f"an image must be a path, bytes, or an object with `bytes` or `path`, not {image!a:.80}; a row of text has no `image`"
        )
    return {"bytes": content, "path": name}


def _written(picture: Image.Image) -> bytes:
    """A picture from memory as a file of the same pixels, with its orientation."""
    file = BytesIO()
    picture.save(file, "PNG" if picture.mode in _PNG_MODES else "TIFF", exif=picture.getexif())
    return file.getvalue()


def _kinds(raw: Row, answers: int) -> list[str | None]:
    """One question kind per answer, from `kinds`, or from one `kind` for all, or None."""
    kinds = raw.get("kinds")
    if kinds is None:
        kinds = [raw.get("kind")] * answers
    if not isinstance(kinds, list) or not all(kind is None or isinstance(kind, str) for kind in kinds):
        raise SampleError("`kind` must be text and `kinds` a list of texts, one per answer")
    if len(kinds) != answers:
        raise SampleError(f"{len(kinds)} kinds but {answers} answers; they must be equal")
    return kinds


def _accepted(accepted: Any, answers: int) -> list[str]:
    """The answers that are right, of a row with one question."""
    if accepted is None or accepted == []:
        return []
    if not isinstance(accepted, list) or answers != 1:
        raise SampleError(
            f"`accepted` must be a list of the answers that are right, in a row with one answer, not {answers}"
        )
    return answer_texts(accepted)


def _check_text(messages: list[Row], kinds: list[str | None]) -> None:
    """Refuse what cannot be written as UTF-8."""
    texts = [part["text"] for message in messages for part in message["content"] if part["text"]]
    texts += [message["reasoning"] for message in messages if message["reasoning"]]
    try:
        "".join([*texts, *(kind for kind in kinds if kind)]).encode()
    except UnicodeEncodeError as error:
        raise SampleError("text or kind holds half a Unicode character: write it whole, or leave it out") from error


def _resolve(images: list[Row], videos: list[Row], root: Path, anywhere: bool) -> str | None:
    """Make the paths absolute; of one that is refused the reason is returned, and it is not kept."""
    problem = _resolved(images, root, anywhere, "image")
    problem = problem or _resolved([one for one in videos if not one["frames"]], root, anywhere, "video")
    for one in videos:
        problem = problem or _resolved(one["frames"], root, anywhere, "frame")
    return problem


def _resolved(images: list[Row], root: Path, anywhere: bool, what: str) -> str | None:
    problem = None
    for position, image in enumerate(images):
        if image["bytes"] is not None:
            image["path"] = None  # only a name from elsewhere
            continue
        try:
            if image["path"].startswith("data:") and what != "video":
                image["bytes"], image["path"] = _decoded_url(image["path"]), None
            else:
                below = Path("/") if anywhere and image["path"].startswith("/") else root
                image["path"] = str(image_path(below, image["path"], what))
        except SampleError as error:
            image["path"], problem = None, problem or f"{what} {position + 1} of {len(images)}: {error}"
    return problem


def _decoded_url(url: str) -> bytes:
    """The picture inside of a data: URL."""
    head, comma, content = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise SampleError(
            f"{head[:60]!a} is no data: URL of a picture; write data:image/png;base64, and the picture in base64"
        )
    try:
        picture = base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise SampleError(f"a data: URL of a picture cannot be decoded: {error}; encode the picture anew") from error
    if not picture.startswith(_BEGINNINGS):
        raise SampleError(
            f"image path {head[:60]!a} is a data: URL that holds no picture; encode one of PNG, JPEG, WEBP, BMP, GIF or TIFF"
        )
    return picture
