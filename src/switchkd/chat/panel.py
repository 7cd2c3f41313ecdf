"""Several models in one conversation about pictures: what each says, how long it takes, and where it looks."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from io import BytesIO
from threading import Event, Thread
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin, TextIteratorStreamer

from switchkd.chat.model_names import by_name
from switchkd.evaluate.attention import attention_maps
from switchkd.evaluate.generate import Answer, Listener, answers, load, reader
from switchkd.models import Pathway


@dataclass(frozen=True)
class Turn:
    """A question of a conversation, and what the model answered."""

    question: str
    answer: str


@dataclass(frozen=True)
class Reply:
    """What a model has said so far, and after how many seconds. `truncated`: it had not finished."""

    text: str
    truncated: bool
    seconds: float


@dataclass(frozen=True)
class AttentionMap:
    """The picture as the model received it, and how much of the answer's attention each of its visual tokens got."""

    picture: Image.Image
    attention: Float[Tensor, "rows columns"]


@dataclass(frozen=True)
class Member:
    """One of the models, by the name that it is shown under."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin

    def ask(
        self,
        images: Sequence[bytes],
        turns: Sequence[Turn],
        question: str,
        *,
        video: bytes | None = None,
        max_new_tokens: int,
        temperature: float = 0.0,
    ) -> Iterator[Reply]:
        """The answer as it grows, the whole of it last. The seconds go from the files of pictures and video to the last token.

        Who asks no further before the end stops the model.

        Raises:
            SampleError: what cannot be asked.
        """
        begin = time.perf_counter()
        processor: Any = self.processor
        streamer: Any = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        listener = Listener(streamer, Event(), temperature)
        rows = [_row(images, turns, question, video=video)]
        done: Future[list[Answer]] = Future()

        def answer() -> None:
            try:
                done.set_result(
                    answers(self.model, self.processor, rows, max_new_tokens=max_new_tokens, listener=listener)
                )
            except BaseException as error:  # raised again where it is asked for
                done.set_exception(error)
            streamer.end()

        thread = Thread(target=answer, daemon=True)
        thread.start()
        text = ""
        try:
            for piece in streamer:
                text += piece
                if piece:
                    yield Reply(text.strip(), True, time.perf_counter() - begin)
        finally:
            listener.stop.set()
            thread.join()
        (whole,) = done.result()
        yield Reply(whole.text, whole.truncated, time.perf_counter() - begin)

    def attention_maps(
        self, images: Sequence[bytes], turns: Sequence[Turn], question: str, answer: str
    ) -> list[AttentionMap]:
        """Where the model looks while it says `answer`, on each picture.

        Raises:
            ValueError: for an empty answer, and for models whose visual tokens are no grid.
        """
        reads = reader(self.model, self.processor)
        row = _row(images, turns, question, answer)
        for message in row["messages"][:-1]:
            message["learned"] = False  # of this answer alone, not of those before it
        inputs = reads.inputs([reads.encode(row)])
        media = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.media["image"].items()}
        shown: Any = self.processor
        pictures = [_picture(pixels.float(), shown.image_processor) for pixels in inputs.media["image"]["pixel_values"]]
        inputs = inputs._replace(media={"image": media}).to(self.model.device)
        maps = attention_maps(Pathway(self.model), inputs)
        return [AttentionMap(picture, found.cpu()) for picture, found in zip(pictures, maps, strict=True)]


def load_models(models: Sequence[str]) -> list[Member]:
    """Load models that are written as PATH or NAME=PATH, and ask each a first question.

    The first question takes longer than those after it: asked by a user, it would make the first model look slow.

    Raises:
        ValueError: a model that cannot be used, or a name that is there twice.
        OSError: there is no such model on the hub.
    """
    members = [Member(name, *load(path)) for name, path in by_name(models).items()]
    blank = BytesIO()
    Image.new("RGB", (224, 224)).save(blank, format="PNG")
    for member in members:
        *_, _ = member.ask([blank.getvalue()], [], "What is this?", max_new_tokens=2)
    return members


def _row(
    images: Sequence[bytes],
    turns: Sequence[Turn],
    question: str,
    answer: str | None = None,
    *,
    video: bytes | None = None,
) -> dict[str, Any]:
    """The conversation as data has it: the pictures, and behind them the video, stand before its first question."""
    shown = [*("image" for _ in images), *("video" for _ in range(video is not None))]
    messages: list[dict[str, Any]] = []
    for asked, said in (*((turn.question, turn.answer) for turn in turns), (question, answer)):
        places = [] if messages else [{"type": kind, "text": None} for kind in shown]
        messages.append({"role": "user", "content": [*places, {"type": "text", "text": asked}]})
        if said is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    return {
        "id": "chat",
        "images": [{"bytes": image, "path": None} for image in images],
        "videos": [] if video is None else [{"bytes": video, "path": None, "frames": []}],
        "messages": messages,
    }


def _picture(pixels: Float[Tensor, "3 height width"], images: Any) -> Image.Image:
    """What an image processor made of a picture, with its normalisation undone."""
    if images.do_normalize:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
        pixels = pixels * std + mean
    return Image.fromarray(pixels.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
