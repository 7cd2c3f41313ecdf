"""Talking with a model about images, in the terminal."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.prompt import Prompt
from rich.text import Text
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.console import harmless, terminal
from switchkd.data.errors import MissingDecoderError, SampleError
from switchkd.data.images import open_image
from switchkd.data.videos import open_videos
from switchkd.evaluate.generate import answers, reader


class Conversation:
    """A model, the images it is shown, and what was said about them so far."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, *, max_new_tokens: int) -> None:
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.images: list[dict[str, Any]] = []
        self.videos: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []

    def show(self, paths: Sequence[Path], videos: Sequence[Path] = ()) -> None:
        """Begin anew with these images and, behind them, videos, in this order.

        Raises:
            SampleError: no such file, no image or video, too large, or a video for a model that reads none; nothing has changed then.
            MissingDecoderError: the package that decodes videos is not installed.
        """
        images = [
            {"bytes": None, "path": os.path.realpath(path)} for path in paths
        ]  # the user's own links may be followed
        for image in images:
            open_image(image)
        films: list[dict[str, Any]] = [{"bytes": None, "path": os.path.realpath(path), "frames": []} for path in videos]
        if films:
            reads = reader(self.model, self.processor)
            if reads.format.no_videos:
                raise SampleError(f"this model cannot be shown a video: {reads.format.no_videos}")
            open_videos(films, sampling=reads.sampling)
        self.images, self.videos, self.messages = images, films, []

    def ask(self, question: str) -> str:
        """The answer, greedily decoded, without control characters.

        Raises:
            SampleError: what cannot be asked; the conversation stays as it was.
            FloatingPointError: what the model computes is not finite.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not self.messages:
            shown = [*("image" for _ in self.images), *("video" for _ in self.videos)]
            content = [{"type": kind, "text": None} for kind in shown] + content
        messages = [*self.messages, {"role": "user", "content": content}]
        row = {"id": "chat", "images": self.images, "videos": self.videos, "messages": messages}
        (answer,) = answers(self.model, self.processor, [row], max_new_tokens=self.max_new_tokens)
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer.text}]}]
        return harmless(answer.text)


def talk(conversation: Conversation) -> None:
    """Ask and answer until `/quit` or the end of the input. Every question follows up on those before it."""
    console = terminal()
    console.print(
        "Ask about what is shown. /image FILE shows another image and begins anew, /video FILE a video, /quit ends."
    )
    if not (conversation.images or conversation.videos):
        console.print("There is no image yet.")
    while True:
        try:
            typed = Prompt.ask("[bold]you[/bold]", console=console).strip()
        except EOFError:
            return
        if typed == "/quit":
            return
        try:
            if typed.startswith("/image"):
                conversation.show([Path(typed.removeprefix("/image").strip()).expanduser()])
                console.print("The model sees this image now.")
            elif typed.startswith("/video"):
                conversation.show([], [Path(typed.removeprefix("/video").strip()).expanduser()])
                console.print("The model sees this video now.")
            elif typed.startswith("/"):
                console.print(Text(f"{typed}: unknown; there are /image FILE, /video FILE and /quit"))
            elif typed:
                console.print(Text.assemble(("model", "bold"), ": ", conversation.ask(typed)))
        except (SampleError, MissingDecoderError) as error:
            console.print(Text(str(error), style="red"))
