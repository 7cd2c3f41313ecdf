"""Where the pictures and videos of a row stand in its questions: at `<image>` and `<video>`, or, for pictures, at what other tools write.

Between backticks such a mark is text: `` `<image>` ``.
"""

import re
from dataclasses import dataclass
from typing import Any

from switchkd.data.errors import SampleError
from switchkd.names import Kind

IMAGE_MARK, VIDEO_MARK = "<image>", "<video>"

_OURS = re.compile(rf"(?<!`){IMAGE_MARK}")
_VIDEO = re.compile(rf"(?<!`){VIDEO_MARK}")
#: `<image 1>`, `<image_1>`, `<img1>`, `<|image_1|>`: the number says which picture it is.
_NUMBERED = re.compile(r"(?<!`)<\|?(?:image|img|picture|photo|pic)[ _#:-]?(\d{1,3})\|?>", re.IGNORECASE)
#: What stands for the next picture; HTML's `<img src=…>` is text.
_OTHERS = re.compile(
    r"(?<!`)(?:(?:<im_start>)?(?:<im_patch>)+(?:<im_end>)?|(?:<img>)?(?:<IMG_CONTEXT>)+(?:</img>)?"
    r"|(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?|<\|begin_of_image\|>|<start_of_image>"
    r"|<\|?(?:image|img)\s*/?\|?>|<\|?image_?(?:placeholder|token|here|soft_token)\|?>|\[IMG\](?!\S+\[/IMG\]))",
    re.IGNORECASE,
)
#: A picture's name between two marks, as Qwen-VL writes it.
_NAMED = re.compile(r"<img>[^<]*</img>", re.IGNORECASE)
_OTHER_MEDIA = re.compile(
    r"(?<!`)<\|?(?:video|audio|speech)(?:[ _#:-]?\d{1,3}|_pad|_?placeholder|_?here)?\s*/?\|?>", re.IGNORECASE
)


@dataclass(frozen=True)
class Part:
    """Text, or an image or a video: the next one of the row, the one of this index, or its own."""

    text: str | None
    index: int | None = None
    #: What the part itself carries; None: what the row has.
    carried: Any = None
    #: What it shows, where it is no text.
    kind: Kind = "image"

    @property
    def canonical(self) -> dict[str, str | None]:
        """As messages hold it."""
        return {"type": self.kind if self.text is None else "text", "text": self.text}


@dataclass(frozen=True)
class Marks:
    """How the questions of one row mark its pictures and videos."""

    #: What marks a picture; None where the row has none.
    pattern: re.Pattern[str] | None = _OURS
    #: The number of the first picture, where marks have numbers.
    first: int | None = None
    #: Whether the row has videos.
    videos: bool = False

    def split(self, text: str) -> list[Part]:
        """Texts, with a picture or a video between each two; one line break behind a mark is layout."""
        parts: list[Part] = []
        end = 0
        for begin, behind, shown in sorted(self._found(text), key=lambda found: found[0]):
            parts += [Part(text[end:begin].removeprefix("\n" if end else "")), shown]
            end = behind
        return [*parts, Part(text[end:].removeprefix("\n" if end else ""))]

    def _found(self, text: str) -> list[tuple[int, int, Part]]:
        """Where marks begin and end, and what they show."""
        videos = [(*found.span(), Part(None, kind="video")) for found in _VIDEO.finditer(text) if self.videos]
        if self.pattern is None:
            return videos
        indices = [
            (found, None if self.first is None else int(found[1]) - self.first) for found in self.pattern.finditer(text)
        ]
        return [*videos, *((*found.span(), Part(None, index)) for found, index in indices)]


def find_marks(questions: list[str], images: int) -> Marks:
    """What marks the `images` pictures of a row in its questions: `<image>` where one of them holds it.

    Raises:
        SampleError: marks of other tools that do not say of each picture where it stands.
    """
    if any(map(_OURS.search, questions)):
        return Marks()
    numbered = [found for text in questions for found in _NUMBERED.finditer(text)]
    others = [found[0] for text in questions for found in _OTHERS.finditer(text)]
    if not numbered and not others:
        return Marks()
    if not others:
        numbers = sorted(int(found[1]) for found in numbered)
        if numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + images)):
            return Marks(_NUMBERED, numbers[0])
    elif not numbered and len(set(others)) == 1 and len(others) == images and not any(map(_NAMED.search, questions)):
        return Marks(_OTHERS)
    listed = ", ".join([*(found[0] for found in numbered), *others][:8])
    raise SampleError(
        f"its questions mark pictures with {listed}, which does not say where each of its {images} images stands: write {IMAGE_MARK} "
        "once for each, in their order, and put a mark that is meant as text in backticks"
    )


def refuse_lost_marks(text: str, *, has_images: bool, has_videos: bool = False) -> None:
    """Raise SampleError where a question marks what the row does not have, or what is not carried to the models."""
    for found in _OTHER_MEDIA.finditer(text):
        if has_videos and found[0] == VIDEO_MARK:
            continue
        if "video" not in found[0].lower():
            raise SampleError(
                f"a question holds {found[0]}, and sound is not carried to the models: leave the row out, or put it in backticks where it "
                "is meant as text"
            )
        missing = "" if has_videos else ", and the row has no video: name it under `video`, or several under `videos`"
        raise SampleError(
            f"a question holds {found[0]}{missing}; mark each video with {VIDEO_MARK}, or put it in backticks where it is meant as text"
        )
    if not has_images and (mark := _OTHERS.search(text) or _NUMBERED.search(text)):
        raise SampleError(
            f"a question holds {mark[0]}, and the row has no image: name its picture under `image`, or several under `images`; put it in "
            "backticks where it is meant as text"
        )
