"""One turn of a row as people write it → a message without its content, and the parts of its content."""

from collections import Counter
from dataclasses import replace
from typing import Any

from switchkd.data.errors import SampleError
from switchkd.data.forms import Row
from switchkd.data.image_marks import Marks, Part, find_marks, refuse_lost_marks
from switchkd.data.lost_content import LEARNED, refuse_lost_of_turn, says_something
from switchkd.names import Kind

#: The names of the roles, by what a turn calls who speaks; those that messages name, first.
_NAMES = {"from": ("human", "gpt", "system"), "role": ("user", "assistant", "system")}
_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
}
_TEXT_PARTS = ("text", "input_text", "output_text")
#: How parts call what they show.
_SHOWN: dict[Kind, tuple[str, ...]] = {
    "image": ("image", "image_url", "input_image"),
    "video": ("video", "video_url", "input_video"),
}
#: Under which keys a part may carry its picture or its video.
_CARRIED: dict[Kind, tuple[str, ...]] = {
    "image": ("image", "image_url", "url", "path", "bytes", "base64"),
    "video": ("video", "video_url", "url", "path", "bytes"),
}


def carries(turns: list[Any], kind: Kind) -> bool:
    """Whether a part of a turn carries its picture, or its video, itself."""
    contents = [turn.get(name) for turn in turns if isinstance(turn, dict) for name in ("content", "value")]
    return any(
        _kind(part) in _SHOWN[kind] and any(says_something(part.get(name)) for name in _CARRIED[kind])
        for content in contents
        if isinstance(content, list)
        for part in content
    )


def marks_of(turns: list[Any], images: int, *, has_images: bool, has_videos: bool) -> Marks:
    """How the questions mark the row's `images` pictures, and its videos: where parts do, what texts hold is text.

    Raises:
        SampleError: as `find_marks`.
    """
    asked = [
        turn
        for turn in turns
        if isinstance(turn, dict) and _ROLES.get(str(turn.get("role", turn.get("from")))) == "user"
    ]
    contents = [turn.get(name) for turn in asked for name in ("content", "value")]
    shown = {_kind(part) for content in contents if isinstance(content, list) for part in content if _is_named(part)}
    if not has_images:
        return Marks(None, videos=has_videos)
    if not shown.isdisjoint(_SHOWN["image"]):
        return Marks(videos=has_videos)
    marks = find_marks([content for content in contents if isinstance(content, str)], images)
    return replace(marks, videos=has_videos)


def read_turn(turn: Any, key: str, marks: Marks | None, unread: Counter[str]) -> tuple[Row, list[Part]]:
    """A message without its content, and the parts of its content.

    Args:
        turn: as it was written.
        key: what its list is called.
        marks: of the row's pictures and videos; None where it has neither.
        unread: see `refuse_lost_of_turn`.

    Raises:
        SampleError: it cannot be used.
    """
    asked = "from" if key == "conversations" else "role"
    role_key = next((name for name in (asked, "from", "role") if isinstance(turn, dict) and name in turn), asked)
    said = turn.get(role_key) if isinstance(turn, dict) else None
    if not isinstance(said, str) or said not in _ROLES:
        raise SampleError(f"each turn needs `{role_key}` to be one of {', '.join(_NAMES[role_key])}, not {said!a}")
    role = _ROLES[said]
    usual = "value" if role_key == "from" else "content"
    content_key = next((name for name in (usual, "value", "content") if turn.get(name) is not None), usual)
    read = {role_key, content_key, "reasoning_content", *LEARNED}
    refuse_lost_of_turn({name: value for name, value in turn.items() if name not in read}, key, unread)
    reasoning = turn.get("reasoning_content") if says_something(turn.get("reasoning_content")) else None
    if reasoning is not None and (role != "assistant" or not isinstance(reasoning, str)):
        raise SampleError("`reasoning_content` must be text, in an assistant turn")
    message = {"role": role, "reasoning": reasoning, "learned": _learned(turn, role)}
    return message, _parts(role, turn.get(content_key), marks, key, unread)


def _learned(turn: Row, role: str) -> bool:
    """Whether the turn is learned, as its flags say: answers are, unless one says no."""
    learned = role == "assistant"
    for name in LEARNED:
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


def _parts(role: str, content: Any, marks: Marks | None, key: str, unread: Counter[str]) -> list[Part]:
    """The content of one turn as text and image parts; neighbouring texts joined."""
    parts: list[Part] = []
    if isinstance(content, str):
        parts = marks.split(content) if role == "user" and marks else [Part(content)]
        parts = [part for part in parts if part.text != ""] if len(parts) > 1 or marks else parts
    elif isinstance(content, list):
        for written in content:
            part = _part(role, written, key, unread)
            if part.text is not None and parts and parts[-1].text is not None:
                part = Part(f"{parts.pop().text}{part.text}")
            parts.append(part)
    else:
        raise SampleError(f"the content of a {role} turn must be text or a list of parts, not {type(content).__name__}")
    if role == "user":
        for part in parts:
            refuse_lost_marks(
                part.text or "",
                has_images=marks is not None and marks.pattern is not None,
                has_videos=marks is not None and marks.videos,
            )
    return parts


def _kind(written: Any) -> Any:
    """The type of a part; of one without a type, what it holds."""
    if not isinstance(written, dict):
        return None
    kind = written.get("type")
    return next((name for name in ("text", "image", "video") if name in written), None) if kind is None else kind


def _is_named(written: Any) -> bool:
    return isinstance(_kind(written), str)


def _part(role: str, written: Any, key: str, unread: Counter[str]) -> Part:
    kind = _kind(written)
    if kind in _TEXT_PARTS and isinstance(written.get("text"), str):
        _refuse_more(written, ("type", "text"), key, unread)
        return Part(written["text"])
    shown = next((shown for shown, names in _SHOWN.items() if kind in names), None)
    if shown is None or role != "user":
        raise SampleError(
            f"a {role} turn has a part of type {kind!a}; supported are text parts with `text`, and image and video parts in user turns"
        )
    carried = [name for name in _CARRIED[shown] if says_something(written.get(name))]
    if len(carried) > 1:
        raise SampleError(f"a part of type {kind!a} carries `{carried[0]}` and `{carried[1]}`; keep one")
    _refuse_more(written, ("type", "index", "detail", *carried), key, unread)
    index = written.get("index")
    if index is not None and (not isinstance(index, int) or isinstance(index, bool) or index < 0):
        raise SampleError(f"a part of type {kind!a} has `index` {index!a}; it counts the row's `{shown}s` from 0")
    content = written[carried[0]] if carried else None
    if isinstance(content, dict) and "url" in content:  # as OpenAI writes it
        content = content["url"]
    if carried == ["base64"]:
        content = f"data:image/unknown;base64,{content}"
    return Part(None, index, content, shown)


def _refuse_more(written: Row, read: tuple[str, ...], key: str, unread: Counter[str]) -> None:
    """Name what a part says besides; raise SampleError where it is content."""
    for name, value in written.items():
        if name in read or not says_something(value):
            continue
        if name in (*_CARRIED["image"], *_CARRIED["video"], "text", "audio", "index"):
            raise SampleError(f"a part of type {_kind(written)!a} carries `{name}` too; make two parts of it")
        unread[f"{key}.content.{name}"] += 1
