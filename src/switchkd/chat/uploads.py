"""What a request of the page brings: pictures and a video that were uploaded to it, a question, and how to answer."""

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from switchkd.data.errors import SampleError
from switchkd.data.images import open_image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: it would report home
# gradio names uploads by their content: the page of another process that shows the same picture would delete ours when it ends
UPLOADS = Path(tempfile.mkdtemp(prefix="switchkd-chat-"))
os.environ["GRADIO_TEMP_DIR"] = str(UPLOADS)
atexit.register(shutil.rmtree, UPLOADS, ignore_errors=True)
try:
    import gradio as gr

    from switchkd.chat.guard import uploaded
except ImportError as error:
    raise ImportError(f"the page needs gradio ({error}): pip install 'switchkd[web]'") from error

#: The highest temperature.
HOTTEST = 2.0


@dataclass(frozen=True)
class Asked:
    """A question about pictures and a video, by the content of their files, and how to answer it."""

    #: Where the files lie: other names are another conversation.
    names: tuple[str | None, ...]
    images: list[bytes]
    video: bytes | None
    question: str
    tokens: int
    temperature: float


def picture_place(label: str, height: int, value: str | None = None) -> gr.Image:
    """A place for a picture. gradio would copy or fetch what a request names, and decode it; `open_image` looks at its size first."""
    place = gr.Image(
        value,
        label=label,
        show_label=False,  # it would lie over a corner of the picture
        sources=["upload", "clipboard"],
        buttons=[],
        height=height,
        elem_classes="picture",
    )
    return cast(gr.Image, _uploads_alone(place))


def video_place(height: int, value: Path | None = None) -> gr.Video:
    """A place for a video, of which the same is true; `open_videos` looks at its size first.

    A video that the page begins with is copied to the uploads, from where alone files are served.
    """
    first = None
    if value is not None:
        folder = UPLOADS / "first"
        folder.mkdir(exist_ok=True)
        first = shutil.copy(value, folder / f"video{value.suffix}")
    place = gr.Video(
        first, label="Video", show_label=False, sources=["upload"], buttons=[], height=height, elem_classes="video"
    )
    return cast(gr.Video, _uploads_alone(place))


def _uploads_alone(place: Any) -> Any:
    place.async_move_resource_to_block_cache = _untouched
    place.preprocess = _upload
    return place


def _upload(sent: Any) -> str | None:
    """Where the file lies that a request names: an upload of this page, or nothing that is opened.

    Raises:
        Error: for everything else in the same words, so that they do not tell what there is on this computer.
    """
    if sent is None or sent.path is None:
        return None
    file = uploaded(sent.path, UPLOADS)
    if file is None:
        raise gr.Error("This file was not uploaded here, or too long ago: choose it again.", print_exception=False)
    return str(file)


async def _untouched(path: str) -> str:
    """What a request names is neither copied nor fetched by gradio."""
    return path


def read(asked: Sequence[Any]) -> Asked:
    """What is asked: the pictures, the video, the question, how many tokens an answer can have, and the temperature.

    Raises:
        SampleError: there is no picture and no video, or a picture that no model can be shown; or there is no question; or a number is
            none that the page offers.
    """
    *pictures, video, question, tokens, temperature = asked
    shown = [picture for picture in pictures if picture is not None]
    if not shown and video is None:
        raise SampleError("There is no picture or video yet: choose one, drop it or paste it.")
    if not isinstance(question, str) or not question.strip():
        raise SampleError("There is no question yet.")
    if not 1 <= tokens < math.inf:
        raise SampleError(f"An answer has one token at least, not {tokens}.")
    if not 0 <= temperature <= HOTTEST:
        raise SampleError(f"The temperature is from 0 to {HOTTEST}, not {temperature}.")
    images = []
    for name in shown:
        content = Path(name).read_bytes()
        open_image({"bytes": content, "path": Path(name).name})
        images.append(content)
    film = None if video is None else Path(video).read_bytes()
    return Asked((*shown, video), images, film, question, int(tokens), float(temperature))
