"""Where the pictures of a row stand in its questions: at `<image>`, or at what other tools write instead of it.

Between backticks such a mark is text: `` `<image>` ``.
"""

import re
from dataclasses import dataclass
from typing import Any

from switchkd.data.errors import SampleError

IMAGE_MARK = "<image>"

_OURS = re.compile(rf"(?<!`){IMAGE_MARK}")
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
_NO_PICTURE = re.compile(
    r"(?<!`)<\|?(?:video|audio|speech)(?:[ _#:-]?\d{1,3}|_pad|_?placeholder|_?here)?\s*/?\|?>", re.IGNORECASE
)


@dataclass(frozen=True)
class Part:
    """Text, or an image: the next one of the row, the one of this index, or its own."""

    text: str | None
    index: int | None = None
    image: Any = None

    @property
    def canonical(self) -> dict[str, str | None]:
        """As messages hold it."""
        return {"type": "image" if self.text is None else "text", "text": self.text}


@dataclass(frozen=True)
class Marks:
    """How the questions of one row mark its pictures."""

    pattern: re.Pattern[str] = _OURS
    #: The number of the first picture, where marks have numbers.
    first: int | None = None

    def split(self, text: str) -> list[Part]:
        """Texts, with a picture between each two; one line break behind a mark is layout."""
        parts: list[Part] = []
        end = 0
        for found in self.pattern.finditer(text):
            index = None if self.first is None else int(found[1]) - self.first
            parts += [Part(text[end : found.start()].removeprefix("\n" if end else "")), Part(None, index)]
            end = found.end()
        return [*parts, Part(text[end:].removeprefix("\n" if end else ""))]


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


def refuse_lost_marks(text: str, *, has_images: bool) -> None:
    """Raise SampleError where a question marks what the row does not have, or what is not carried to the models."""
    if found := _NO_PICTURE.search(text):
        raise SampleError(
            f"a question holds {found[0]}, and only images are supported: leave the row out, or give frames as images, each marked with "
            f"{IMAGE_MARK}; put it in backticks where it is meant as text"
        )
    if not has_images and (found := _OTHERS.search(text) or _NUMBERED.search(text)):
        raise SampleError(
            f"a question holds {found[0]}, and the row has no image: name its picture under `image`, or several under `images`; put it in "
            "backticks where it is meant as text"
        )
