"""Several models before one picture and one question: what each says, how long it takes, and where it looks."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from switchkd.chat.model_names import by_name
from switchkd.evaluate.attention import attention_maps
from switchkd.evaluate.generate import answers, load, reader
from switchkd.models import Pathway


@dataclass(frozen=True)
class Reply:
    """What a model said, and after how many seconds. `truncated`: it had not finished."""

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

    def ask(self, image: bytes, question: str, *, max_new_tokens: int) -> Reply:
        """The answer, greedily decoded; the seconds go from the file of the picture to the last token.

        Raises:
            SampleError: what cannot be asked.
        """
        begin = time.perf_counter()
        (answer,) = answers(self.model, self.processor, [_row(image, question)], max_new_tokens=max_new_tokens)
        return Reply(answer.text, answer.truncated, time.perf_counter() - begin)

    def attention_map(self, image: bytes, question: str, answer: str) -> AttentionMap:
        """Where the model looks while it says `answer`.

        Raises:
            ValueError: for an empty answer, and for models whose visual tokens are no grid.
        """
        reads = reader(self.model, self.processor)
        inputs = reads.inputs([reads.encode(_row(image, question, answer))])
        pixels = inputs.media["image"]["pixel_values"]
        images = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.media["image"].items()}
        inputs = inputs._replace(media={"image": images}).to(self.model.device)
        (attention,) = attention_maps(Pathway(self.model), inputs)
        processor: Any = self.processor
        return AttentionMap(_picture(pixels[0].float(), processor.image_processor), attention.cpu())


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
        member.ask(blank.getvalue(), "What is this?", max_new_tokens=2)
    return members


def _row(image: bytes, question: str, answer: str | None = None) -> dict[str, Any]:
    asked = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return {"id": "chat", "images": [{"bytes": image, "path": None}], "messages": messages}


def _picture(pixels: Float[Tensor, "3 height width"], images: Any) -> Image.Image:
    """What an image processor made of a picture, with its normalisation undone."""
    if images.do_normalize:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (images.image_mean, images.image_std))
        pixels = pixels * std + mean
    return Image.fromarray(pixels.mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())
