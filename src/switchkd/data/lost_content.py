"""Keys of rows and turns that nobody reads: those with content that would be lost are refused, the others are counted."""

import math
import re
from collections import Counter
from typing import Any

from PIL import Image

from switchkd.data.errors import SampleError

Row = dict[str, Any]

#: Keys of a turn that say whether it is learned.
LEARNED = ("loss", "weight", "train", "loss_scale")
#: Names of keys that hold pictures in other tools' rows, without case and punctuation.
_PICTURE_KEY = re.compile(r"(im|img|image|picture|photo|pic|file)(file|s)?(path|name|url|uri|byte|data|list|file)?s?")
#: A further picture next to the first: `image_2`.
_FURTHER_PICTURE = re.compile(r"(im|img|image|picture|photo|pic)[_ -]?\d+", re.IGNORECASE)
#: Keys of a turn that say, in other tools' words, whether it is learned.
_LEARNED_OTHERWISE = re.compile(r"(loss)?mask(ed)?|ignored?|trainable|learn(ed|able)?|supervised?")
#: Keys that say what is learned, the value that changes nothing, and what to do where they have another.
_OF_LEARNING: list[tuple[re.Pattern[str], bool, str]] = [
    (
        re.compile(r"trainon(the)?(input|prompt|question|instruction|source|user)s?"),
        False,
        "answers alone are learned: leave it out",
    ),
    (
        re.compile(r"mask(the)?(input|prompt|question|instruction|source|user)s?"),
        True,
        "answers alone are learned: leave it out",
    ),
    (
        re.compile(r"maskhistory|(trainon)?(the)?last(turn|answer|response)s?(only)?"),
        False,
        "every answer is learned: mark those before the last with `loss`, false, and leave it out",
    ),
    (
        re.compile(r"mask(ed|s)?|ignored?"),
        False,
        "say in the turns with `loss`, true or false, what is learned, or leave the row out",
    ),
    (
        re.compile(r"trainable|learn(ed|able)?|supervised?"),
        True,
        "say in the turns with `loss`, true or false, what is learned, or leave the row out",
    ),
    (
        re.compile(r"(sample|row|example)?(loss|weight)(mask|scale)?s?|train"),
        True,
        "a turn may be left out with it, a row cannot be weighed: leave it out",
    ),
]
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}
_PICTURE_NAME = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|ppm)$", re.IGNORECASE)
#: Names of keys that hold what is not carried to the models, without case and punctuation, and what to do.
_CONTENT_KEYS = {
    re.compile(r"video(file|s)?(path|name|url|uri|file)?s?|frames?|clips?|mp|mov|avi|mkv|webm"): (
        "videos, as files or as lists of their frames, are read from `video` or `videos` of the row alone: name it so, or say "
        "data.columns: {video: …}"
    ),
    re.compile(r"audio(file|s)?(path|name|url|uri|file)?s?|wav|flac|ogg"): (
        "sound is not carried to the models: leave the row out"
    ),
    re.compile(r"(systems?|sys|developer)(prompt|message|instruction)?s?"): "name it `system`",
    re.compile(
        r"(available|given)?(tool|function)(s|call|choice|definition|schema|list)?s?(list)?"
    ): "tools are not carried: write them into `system` and the turns, or leave it out",
    re.compile(r"(rejected|chosen)\w*"): "preferences are not learned from: keep the chosen turns alone",
    re.compile(
        r"thinking|reasoning|thoughts?|rationales?|explanations?|solutions?|cot|chainofthoughts?"
    ): "name it `reasoning_content`, in the turn that it belongs to, write it into the answer, or leave it out",
}
#: The same of keys in a row of one question: a part of it.
_OF_QUESTIONS = re.compile(r"(choice|option|context|passage|hint|document|lecture)s?(text)?s?")


def refuse_lost_of_row(rest: Row, *, has_images: bool, one_question: bool, unread: Counter[str]) -> None:
    """Raise SampleError where `rest`, keys of a row that nobody reads, holds what would be lost; count what else says something.

    `one_question`: a row in columns, whose question others may belong to.
    """
    for name, value in rest.items():
        plain = _plain(name)
        if way_out := _change_of_learning(plain, value):
            raise SampleError(f"has `{name}`, which is not read; {way_out}")
        if not says_something(value):
            continue
        if way_out := _way_out(plain, value):
            raise SampleError(f"has `{name}`, which is not read; {way_out}")
        if one_question and _OF_QUESTIONS.fullmatch(plain):
            raise SampleError(f"has `{name}`, which is not read; write it into the question, or leave it out")
        if _FURTHER_PICTURE.fullmatch(str(name)) and _is_picture(value):
            raise SampleError(f"has `{name}`, which is not read: list all pictures of the row under `images`")
        if not has_images and (_PICTURE_KEY.fullmatch(plain) or _is_picture(value)):
            raise SampleError(
                f"has `{name}` and no image, and pictures are read from `image` or `images` alone: name it so, or say "
                f"data.columns: {{image: {name}}}"
            )
        unread[str(name)] += 1


def refuse_lost_of_turn(rest: Row, key: str, unread: Counter[str]) -> None:
    """The same for a turn of the list `key`."""
    for name, value in rest.items():
        if value is not None and _LEARNED_OTHERWISE.fullmatch(_plain(name)):
            raise SampleError(
                f"a turn has `{name}`, which is not read; say with `loss`, true or false, whether it is learned"
            )
        plain = _plain(name)
        if way_out := _change_of_learning(plain, value):
            raise SampleError(f"a turn has `{name}`, which is not read; {way_out}")
        if not says_something(value):
            continue
        if way_out := _way_out(plain, value):
            raise SampleError(f"a turn has `{name}`, which is not read; {way_out}")
        if name in ("from", "role", "value", "content"):
            raise SampleError(f"a turn says who speaks, or what, a second time under `{name}`; keep one")
        if _PICTURE_KEY.fullmatch(plain) or _is_picture(value):
            raise SampleError(
                f"a turn has `{name}`: list the row's pictures under `image` or `images` of the row, which `{key}` is in"
            )
        unread[f"{key}.{name}"] += 1


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z]", "", str(name).lower())


def _way_out(plain: str, value: Any) -> str | None:
    """What to do with a key that holds what would be lost; None for another."""
    if value is True or (plain in ("toolchoice", "functioncall") and value in ("auto", "none")):
        return None
    return next((text for pattern, text in _CONTENT_KEYS.items() if pattern.fullmatch(plain)), None)


def _change_of_learning(plain: str, value: Any) -> str | None:
    """What to do with a key that says that another part of the row is learned than what is; None for another."""
    for pattern, usual, way_out in _OF_LEARNING:
        if pattern.fullmatch(plain):
            flags = [_flag(one) for one in (value if isinstance(value, list) else [value])]
            said = flags and all(flag is not None for flag in flags)
            return way_out if said and any(flag != usual for flag in flags) else None
    return None


def _flag(value: Any) -> float | None:
    """A yes, a no or a weight as a number; tables of text hold them as text."""
    if isinstance(value, str):
        try:
            value = _WORDS[value.lower()] if value.lower() in _WORDS else float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None


def says_something(value: Any) -> bool:
    """Whether anything would be lost with a value; Arrow fills what a row does not have with nulls."""
    if isinstance(value, dict):
        return any(map(says_something, value.values()))
    if isinstance(value, list):
        return any(map(says_something, value))
    if isinstance(value, float):
        return not math.isnan(value)
    return not (value is None or value is False or (isinstance(value, str | bytes) and not value))


def _is_picture(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_picture, value))
    if isinstance(value, dict):
        return any(_is_picture(value.get(name)) for name in ("bytes", "path", "url"))
    if isinstance(value, str):
        return _PICTURE_NAME.search(value) is not None
    return isinstance(value, bytes | Image.Image)
