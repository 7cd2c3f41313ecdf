"""One row as people write it → one canonical row (`formats.FEATURES`), or the reason why it cannot be used.

What `<image>` means. In string content of a *user* turn, in a row that has images, it marks the place of an image;
there must be as many marks as images. In text parts of list content (where `{"type": "image"}` is the mark), in answers
and in system turns it is text. In the question of a row without images it is the trace of an image that was lost: such a
row is bad. One line break after a mark is layout, which the chat template writes by itself.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchkd.data.errors import SampleError
from switchkd.data.images import image_path

IMAGE_MARK = "<image>"
Row = dict[str, Any]

_KNOWN = {"id", "image", "images", "conversations", "messages", "system", "kind", "kinds"}
#: List of turns → the keys of who speaks and of what is said, and the names of the roles.
_FORMS = {
    "conversations": ("from", "value", {"human": "user", "gpt": "assistant", "system": "system"}),
    "messages": ("role", "content", {"user": "user", "assistant": "assistant", "system": "system"}),
}
#: Keys of a turn that say whether it is learned.
_LEARNED = ("loss", "weight", "train", "loss_scale")
#: Names of keys that hold pictures in other tools' rows, without case and punctuation.
_PICTURE_KEY = re.compile(r"(im|img|image|picture|photo|pic|file)(file|s)?(path|name|url|uri|byte|data|list|file)?s?")
_PICTURE_NAME = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|ppm)$", re.IGNORECASE)
#: Names of keys that hold what is not carried to the models, without case and punctuation, and what to do.
_CONTENT_KEYS = {
    re.compile(r"(video|audio)(file|s)?(path|name|url|uri|file)?s?"): (
        "only images are supported, so leave the row out or give frames as images"
    ),
    re.compile(r"systems?(prompt|message)s?"): "name it `system`",
    re.compile(
        r"(tool|function)(s|calls?)?"
    ): "tools are not carried: write them into `system` and the turns, or leave it out",
    re.compile(r"(rejected|chosen)\w*"): "preferences are not learned from: keep the chosen turns alone",
    re.compile(r"thinking|reasoning"): "name it `reasoning_content`, in the turn that it belongs to",
    re.compile(r"loss|weight"): "a turn may be left out with it, a row cannot be weighed: leave it out",
}


@dataclass(frozen=True)
class _Part:
    """Text, or an image: the next one of the row, or the one of this index."""

    text: str | None
    index: int | None = None

    @property
    def canonical(self) -> Row:
        return {"type": "image" if self.text is None else "text", "text": self.text}


def row_id(raw: Any, number: int) -> str:
    """The id of a row, or its number where it has none; without half characters, which cannot be written."""
    identity = raw.get("id") if isinstance(raw, dict) else None
    return writable(str(number if identity is None else identity))


def writable(text: str) -> str:
    """The text with halves of characters spelt out."""
    return text.encode(errors="backslashreplace").decode()


def canonical_row(raw: Any, root: Path, unread: Counter[str]) -> Row:
    """The row without `id` and `source`. Counts in `unread` every key that says something and that nobody reads.

    A row whose image has a refused path keeps its place, without the image and with `problem` set.

    Raises:
        SampleError: the row cannot be used.
    """
    if not isinstance(raw, dict):
        raise SampleError(f"a row must be an object, not {type(raw).__name__}")
    lists = sorted((key for key in _FORMS if isinstance(raw.get(key), list)), key=lambda key: not raw[key])
    if len(lists) > 1 and raw[lists[1]]:
        raise SampleError("has both `conversations` and `messages`; keep one")
    if not lists:
        raise SampleError(
            "unknown format; looked for a list `conversations` (LLaVA) or a list `messages` (with `images`), but the row has the keys "
            f"{', '.join(map(str, raw)) or '(none)'}"
        )
    key, images = lists[0], _image_list(raw)
    _refuse_lost_content(raw, bool(images), unread)
    turns = [_turn(turn, key, bool(images), unread) for turn in raw[key]]
    images = _in_order(images, [part for _, parts in turns for part in parts if part.text is None])
    messages = _with_system(
        raw.get("system"), [turn | {"content": [p.canonical for p in parts]} for turn, parts in turns]
    )
    kinds = _kinds(raw, sum(message["role"] == "assistant" for message in messages))
    _check_text(messages, kinds)
    problem = _resolve(images, root)
    return {"images": images, "messages": messages, "kinds": kinds, "problem": problem}


def _refuse_lost_content(raw: Row, has_images: bool, unread: Counter[str]) -> None:
    for name, value in raw.items():
        if name in _KNOWN or not (_says_something(value) or (value is False and name in ("loss", "weight"))):
            continue
        plain = re.sub(r"[^a-z]", "", str(name).lower())
        if way_out := _way_out(plain, value):
            raise SampleError(f"has `{name}`, which is not read; {way_out}")
        if not has_images and (_PICTURE_KEY.fullmatch(plain) or _is_picture(value)):
            raise SampleError(
                f"has `{name}` and no image, and pictures are read from `image` or `images` alone: name it so"
            )
        unread[str(name)] += 1


def _way_out(plain: str, value: Any) -> str | None:
    """What to do with a key that holds what would be lost; None for another."""
    if value is True or (value == 1 and plain in ("loss", "weight")):
        return None
    return next((text for pattern, text in _CONTENT_KEYS.items() if pattern.fullmatch(plain)), None)


def _says_something(value: Any) -> bool:
    """Whether anything would be lost with a value; Arrow fills what a row does not have with nulls."""
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    if isinstance(value, list):
        return any(map(_says_something, value))
    return not (
        value is None or value is False or value in ("", b"") or (isinstance(value, float) and math.isnan(value))
    )


def _is_picture(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_picture, value))
    if isinstance(value, dict):
        return any(_is_picture(value.get(name)) for name in ("bytes", "path", "url"))
    return isinstance(value, bytes) or (isinstance(value, str) and _PICTURE_NAME.search(value) is not None)


def _turn(turn: Any, key: str, has_images: bool, unread: Counter[str]) -> tuple[Row, list[_Part]]:
    """A message without its content, and the parts of its content."""
    role_key, content_key, roles = _FORMS[key]
    said = turn.get(role_key) if isinstance(turn, dict) else None
    if not isinstance(said, str) or said not in roles:
        raise SampleError(f"each turn needs `{role_key}` to be one of {', '.join(roles)}, not {said!a}")
    role = roles[said]
    for name, value in turn.items():
        if name in (role_key, content_key, "reasoning_content", *_LEARNED) or not _says_something(value):
            continue
        plain = re.sub(r"[^a-z]", "", str(name).lower())
        if way_out := _way_out(plain, value):
            raise SampleError(f"a turn has `{name}`, which is not read; {way_out}")
        if _PICTURE_KEY.fullmatch(plain) or _is_picture(value):
            raise SampleError(f"a turn has `{name}`: list the row's pictures under `image` or `images`, beside `{key}`")
        unread[f"{key}.{name}"] += 1
    reasoning = turn.get("reasoning_content") if _says_something(turn.get("reasoning_content")) else None
    if reasoning is not None and (role != "assistant" or not isinstance(reasoning, str)):
        raise SampleError("`reasoning_content` must be text, in an assistant turn")
    message = {"role": role, "reasoning": reasoning, "learned": _learned(turn, role)}
    return message, _parts(role, turn.get(content_key), has_images)


def _learned(turn: Row, role: str) -> bool:
    """Whether the turn is learned, as its flags say: answers are, unless one says no."""
    learned = role == "assistant"
    for name in _LEARNED:
        flag = turn.get(name)
        if flag is None:
            continue
        if not isinstance(flag, bool | int | float) or flag not in (0, 1):
            raise SampleError(
                f"a turn has `{name}` {flag!a}; supported are 0 and 1, false and true: a turn is learned or not"
            )
        if flag and role != "assistant":
            raise SampleError(f"a {role} turn has `{name}` {flag!a}; only answers can be learned")
        learned = learned and bool(flag)
    return learned


def _parts(role: str, content: Any, has_images: bool) -> list[_Part]:
    """The content of one turn as text and image parts; neighbouring texts joined."""
    parts: list[_Part] = []
    if isinstance(content, str):
        texts = content.split(IMAGE_MARK) if role == "user" and has_images else [content]
        for number, text in enumerate(texts):
            if number:
                parts.append(_Part(None))
            parts.append(_Part(text.removeprefix("\n") if number else text))
        parts = [part for part in parts if part.text != ""] if len(parts) > 1 or has_images else parts
    elif isinstance(content, list):
        for written in content:
            part = _part(role, written)
            if part.text is not None and parts and parts[-1].text is not None:
                part = _Part(f"{parts.pop().text}{part.text}")
            parts.append(part)
    else:
        raise SampleError(f"the content of a {role} turn must be text or a list of parts, not {type(content).__name__}")
    if role == "user" and not has_images and any(IMAGE_MARK in (part.text or "") for part in parts):
        raise SampleError(
            f"a question holds {IMAGE_MARK}, and the row has no image: name its picture under `image`, or several under `images`"
        )
    return parts


def _part(role: str, written: Any) -> _Part:
    kind = written.get("type") if isinstance(written, dict) else None
    if kind == "text" and isinstance(written.get("text"), str):
        return _Part(written["text"])
    if kind != "image" or role != "user":
        raise SampleError(
            f"a {role} turn has a part of type {kind!a}; supported are text parts with `text`, and image parts in user turns"
        )
    if extra := [key for key, value in written.items() if key not in ("type", "text", "index") and value is not None]:
        raise SampleError(f"an image part carries `{extra[0]}`; list the row's images under `images`")
    index = written.get("index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
        raise SampleError(f"an image part has `index` {index!a}; it counts the row's `images` from 0")
    return _Part(None, index)


def _in_order(images: list[Row], marks: list[_Part]) -> list[Row]:
    """The images in the order of their marks."""
    if len(marks) != len(images):
        raise SampleError(f"{len(marks)} image marks ({IMAGE_MARK}) but {len(images)} images; they must be equal")
    indices = [mark.index for mark in marks]
    if all(index is None for index in indices):
        return images
    order = [index for index in indices if index is not None]
    if sorted(order) != list(range(len(images))):
        raise SampleError(
            f"its image parts have the indices {indices}, and there are {len(images)} images, from 0, each marked once"
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


def _image_list(raw: Row) -> list[Row]:
    """The images of a row: a path, embedded bytes, `{bytes, path}`, or a list of these, under `image` or `images`."""
    given = [raw[key] for key in ("image", "images") if raw.get(key) is not None and raw[key] != []]
    if len(given) > 1:
        raise SampleError("has both `image` and `images`; keep one")
    value = given[0] if given else []
    images = []
    for image in value if isinstance(value, list) else [value]:
        if isinstance(image, str):
            image = {"bytes": None, "path": image}
        elif isinstance(image, bytes):
            image = {"bytes": image, "path": None}
        content, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (None, None)
        if not isinstance(content, bytes) and not (content is None and isinstance(name, str)):
            raise SampleError(
                f"an image must be a path, bytes, or an object with `bytes` or `path`, not {image!a:.80}; a row of text has no `image`"
            )
        images.append({"bytes": content, "path": name})
    return images


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


def _check_text(messages: list[Row], kinds: list[str | None]) -> None:
    """Refuse what cannot be written as UTF-8."""
    texts = [part["text"] for message in messages for part in message["content"] if part["text"]]
    texts += [message["reasoning"] for message in messages if message["reasoning"]]
    try:
        "".join([*texts, *(kind for kind in kinds if kind)]).encode()
    except UnicodeEncodeError as error:
        raise SampleError("text or kind holds half a Unicode character") from error


def _resolve(images: list[Row], root: Path) -> str | None:
    """Make the paths absolute; of one that is refused the reason is returned, and it is not kept."""
    problem = None
    for position, image in enumerate(images):
        if image["bytes"] is not None:
            image["path"] = None  # only a name from elsewhere
            continue
        try:
            image["path"] = str(image_path(root, image["path"]))
        except SampleError as error:
            image["path"], problem = None, problem or f"image {position + 1} of {len(images)}: {error}"
    return problem
