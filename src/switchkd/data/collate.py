"""Canonical rows -> padded tensors: for training (with labels, padded right) and for generation (padded left)."""

from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import ProcessorMixin
from typing_extensions import NotRequired

from switchkd.data.errors import DataError, SampleError
from switchkd.data.guard import MAX_PIXELS, open_image
from switchkd.data.templates import ChatFormat, Tokens, choose_format
from switchkd.types import IGNORE_INDEX, Batch


class Prompts(TypedDict):
    """Conversations that end where the model is to answer, padded on the left: `model.generate(**prompts)`."""

    input_ids: Int[Tensor, "batch sequence"]
    attention_mask: Int[Tensor, "batch sequence"]
    pixel_values: NotRequired[Float[Tensor, "images channels height width"]]


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it. `tokens` is its length before truncation; `labels` are not shifted."""

    input_ids: list[int]
    labels: list[int]
    tokens: int
    pixel_values: Float[Tensor, "images channels height width"] | None


class Collator:
    """Turns canonical rows (`sources.FEATURES`) into a `Batch`. Picklable, so `DataLoader` workers can run it.

    `format` holds the chat template it uses (see `templates.choose_format`). `max_length` is in tokens, images
    included: the last answers of longer rows are cut, images never. Raises `DataError` at once for processors it cannot serve, and
    `SampleError` with the row's id for rows it cannot encode (`guard.check_rows` finds those before training).
    """

    def __init__(self, processor: ProcessorMixin, *, max_length: int = 2048, max_pixels: int = MAX_PIXELS) -> None:
        self.processor = processor
        self.max_length = max_length
        self.max_pixels = max_pixels
        self.format = choose_format(processor)
        _pad_token_id(processor)

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Encode and pad on the right. `pixel_values` is absent when no row has an image."""
        encoded = [self.encode(row) for row in rows]
        width = max(len(row.input_ids) for row in encoded)
        pad = _pad_token_id(self.processor)
        lengths = [len(row.input_ids) for row in encoded]
        batch = Batch(
            input_ids=torch.tensor([row.input_ids + [pad] * (width - len(row.input_ids)) for row in encoded]),
            attention_mask=torch.tensor([[1] * length + [0] * (width - length) for length in lengths]),
            labels=torch.tensor([row.labels + [IGNORE_INDEX] * (width - len(row.labels)) for row in encoded]),
        )
        if pixels := [row.pixel_values for row in encoded if row.pixel_values is not None]:
            batch["pixel_values"] = torch.cat(pixels)
        return batch

    def encode(self, row: dict[str, Any]) -> Encoded:
        """Encode one row. Raises `SampleError`, naming the row, if it cannot be used."""
        try:
            if any(not _text(message).strip() for message in row["messages"] if message["role"] == "assistant"):
                raise SampleError("has an empty answer")
            tokens, pixel_values = _read(self.processor, self.format, row, self.max_pixels)
            return self._cut(tokens, pixel_values)
        except DataError as error:
            raise SampleError(f"sample {row['id']!a}: {error}") from error

    def _cut(self, tokens: Tokens, pixel_values: Tensor | None) -> Encoded:
        """Apply `max_length`: at the end only, never inside or before an image."""
        count = len(tokens.input_ids)
        image_token_id = self.format.image_token_id
        images_end = max((i for i, token in enumerate(tokens.input_ids, start=1) if token == image_token_id), default=0)
        if images_end > self.max_length:
            raise SampleError(
                f"has {count} tokens and its last image ends at token {images_end}, but max_length is "
                f"{self.max_length}; raise max_length or use fewer images in a row"
            )
        input_ids, is_answer = tokens.input_ids[: self.max_length], tokens.is_answer[: self.max_length]
        if not any(is_answer[1:]):
            if not any(tokens.is_answer):
                raise SampleError("has no answer token: no assistant turn")
            first = tokens.is_answer.index(True)
            raise SampleError(
                f"has {count} tokens and its first answer begins at token {first}, but max_length is "
                f"{self.max_length}; raise max_length or shorten the question"
            )
        labels = [token if answer else IGNORE_INDEX for token, answer in zip(input_ids, is_answer, strict=True)]
        return Encoded(input_ids, labels, count, pixel_values)


def prompts(processor: ProcessorMixin, rows: list[dict[str, Any]], *, max_pixels: int = MAX_PIXELS) -> Prompts:
    """What a model is asked with: the rows' messages and the beginning of an answer, padded on the left.

    A row's last message must be the user's. The template is that of the `Collator`, so a prompt is exactly the part
    of a training sequence before the answer. Raises `SampleError` naming the row.
    """
    chat = choose_format(processor)
    ids, pixels = [], []
    for row in rows:
        try:
            if not row["messages"] or row["messages"][-1]["role"] != "user":
                raise SampleError("cannot be asked: its last message is not the user's")
            tokens, pixel_values = _read(processor, chat, row, max_pixels, generation_prompt=True)
        except DataError as error:
            raise SampleError(f"sample {row['id']!a}: {error}") from error
        ids.append(tokens.input_ids)
        if pixel_values is not None:
            pixels.append(pixel_values)
    width = max(len(row_ids) for row_ids in ids)
    pad = _pad_token_id(processor)
    batch = Prompts(
        input_ids=torch.tensor([[pad] * (width - len(row_ids)) + row_ids for row_ids in ids]),
        attention_mask=torch.tensor([[0] * (width - len(row_ids)) + [1] * len(row_ids) for row_ids in ids]),
    )
    if pixels:
        batch["pixel_values"] = torch.cat(pixels)
    return batch


def _read(
    processor: ProcessorMixin,
    chat: ChatFormat,
    row: dict[str, Any],
    max_pixels: int,
    *,
    generation_prompt: bool = False,
) -> tuple[Tokens, Tensor | None]:
    """Open a row's images, process them, and tokenise its messages around them."""
    if row.get("problem"):
        raise SampleError(row["problem"])
    images = [open_image(image, max_pixels=max_pixels) for image in row["images"]]
    placeholders: list[str] = []
    pixel_values = None
    if images:
        processed = processor.image_processor(images, return_tensors="pt")
        pixel_values = processed["pixel_values"]
        if set(processed) != {"pixel_values"} or pixel_values.ndim != 4 or len(pixel_values) != len(images):
            raise DataError(
                f"{type(processor).__name__} makes {sorted(processed)} of its images; supported is one "
                "`pixel_values` of [images, channels, height, width]"
            )
        placeholders = [processor.replace_image_token(processed, image_idx=index) for index in range(len(images))]
    tokens = chat.tokenize(row["messages"], placeholders, generation_prompt=generation_prompt)
    return tokens, pixel_values


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] or "" for part in message["content"])


def _pad_token_id(processor: ProcessorMixin) -> int:
    """The padding id; any token serves, as the attention mask hides it, except the image token."""
    pad = processor.tokenizer.pad_token_id
    pad = processor.tokenizer.eos_token_id if pad is None else pad
    if pad is None:
        raise DataError("the tokenizer has neither a padding nor an eos token; set tokenizer.pad_token")
    return int(pad)
