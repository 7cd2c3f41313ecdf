"""Canonical rows -> padded tensors: for training (with labels, padded right) and for generation (padded left)."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import ProcessorMixin

from switchkd.data.answer_tokens import AnswerToken
from switchkd.data.chat_format import ChatFormat, Tokens, choose_format
from switchkd.data.chat_templates import TOKEN_TYPES
from switchkd.data.errors import DataError, SampleError
from switchkd.data.images import MAX_PIXELS, open_image
from switchkd.types import IGNORE_INDEX, Batch

#: What a processor makes of text; all else that it makes is the images'.
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")
#: What the image processor makes of a row's images, by the names of the model's arguments.
Images: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it. `tokens` is its length before truncation; `labels` are not shifted; `types` are per token.

    `covers` is as in `Tokens`.
    """

    input_ids: list[int]
    labels: list[int]
    covers: list[AnswerToken | None]
    tokens: int
    types: dict[str, list[int]]
    images: Images


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
        """Encode and pad on the right. What images make is absent when no row has an image."""
        return self.pad([self.encode(row) for row in rows])

    def pad(self, encoded: list[Encoded]) -> Batch:
        """Join encoded rows, padded on the right."""
        pad = _pad_token_id(self.processor)
        batch: Any = {
            "input_ids": _padded([row.input_ids for row in encoded], pad, "right"),
            "attention_mask": _padded([[1] * len(row.input_ids) for row in encoded], 0, "right"),
            "labels": _padded([row.labels for row in encoded], IGNORE_INDEX, "right"),
            **{name: _padded([row.types[name] for row in encoded], 0, "right") for name in encoded[0].types},
            **_joined([row.images for row in encoded]),
        }
        return batch

    def encode(self, row: dict[str, Any]) -> Encoded:
        """Encode one row. Raises `SampleError`, naming the row, if it cannot be used."""
        try:
            if any(not _text(message).strip() for message in row["messages"] if message["role"] == "assistant"):
                raise SampleError("has an empty answer")
            tokens, images = _read(self.processor, self.format, row, self.max_pixels)
            return self._cut(tokens, images)
        except DataError as error:
            raise SampleError(f"sample {row['id']!a}: {error}") from error

    def _cut(self, tokens: Tokens, images: Images) -> Encoded:
        """Apply `max_length`: at the end only, never inside or before an image."""
        count = len(tokens.input_ids)
        if tokens.images_end > self.max_length:
            raise SampleError(
                f"has {count} tokens and its last image ends at token {tokens.images_end}, but max_length is "
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
        covers = tokens.covers[: self.max_length]
        types = _token_types(self.processor, self.format, Tokens(input_ids, is_answer, covers))
        return Encoded(input_ids, labels, covers, count, types, images)


def prompts(
    processor: ProcessorMixin, rows: list[dict[str, Any]], *, max_pixels: int = MAX_PIXELS
) -> dict[str, Tensor]:
    """What a model is asked with: the rows' messages and the beginning of an answer, padded on the left: `model.generate(**prompts)`.

    A row's last message must be the user's. The template is that of the `Collator`, so a prompt is exactly the part
    of a training sequence before the answer. Raises `SampleError` naming the row.
    """
    chat = choose_format(processor)
    asked, images = [], []
    for row in rows:
        try:
            if not row["messages"] or row["messages"][-1]["role"] != "user":
                raise SampleError("cannot be asked: its last message is not the user's")
            tokens, of_row = _read(processor, chat, row, max_pixels, generation_prompt=True)
        except DataError as error:
            raise SampleError(f"sample {row['id']!a}: {error}") from error
        asked.append(tokens)
        images.append(of_row)
    types = [_token_types(processor, chat, tokens) for tokens in asked]
    return {
        "input_ids": _padded([tokens.input_ids for tokens in asked], _pad_token_id(processor), "left"),
        "attention_mask": _padded([[1] * len(tokens.input_ids) for tokens in asked], 0, "left"),
        **{name: _padded([of_row[name] for of_row in types], 0, "left") for name in types[0]},
        **_joined(images),
    }


def _read(
    processor: ProcessorMixin,
    chat: ChatFormat,
    row: dict[str, Any],
    max_pixels: int,
    *,
    generation_prompt: bool = False,
) -> tuple[Tokens, Images]:
    """Open a row's images, process them, and tokenise its messages around what the processor writes for them."""
    if row.get("problem"):
        raise SampleError(row["problem"])
    opened = [open_image(image, max_pixels=max_pixels) for image in row["images"]]
    placeholders: list[str] = []
    images: Images = {}
    if opened:
        call: Any = processor
        try:
            processed = call(
                text=[chat.image_token * len(opened)],
                images=[opened],
                text_kwargs={"return_tensors": None},
                images_kwargs={"return_tensors": "pt"},
                return_text_replacement_offsets=True,
            )
        except ValueError as error:  # too small, too long and narrow, …
            raise SampleError(f"{type(processor).__name__} cannot process its images: {error}") from error
        placeholders = [place["replacement"] for place in processed["text_replacement_offsets"][0]]
        images = {name: made for name, made in processed.items() if isinstance(made, Tensor) and name not in _TEXT}
    tokens = chat.tokenize(row["messages"], placeholders, generation_prompt=generation_prompt)
    return tokens, images


def _token_types(processor: ProcessorMixin, chat: ChatFormat, tokens: Tokens) -> dict[str, list[int]]:
    """The token types that the processor's model reads, by their name; none for most."""
    if (kind := TOKEN_TYPES.get(type(processor).__name__)) is None:
        return {}
    name, marked = kind
    if marked == "images":
        return {name: [int(token == chat.image_token_id) for token in tokens.input_ids]}
    first = tokens.is_answer.index(True) if any(tokens.is_answer) else len(tokens.input_ids)
    return {name: [int(index >= first) for index in range(len(tokens.input_ids))]}


def _padded(rows: list[list[int]], filler: int, side: Literal["left", "right"]) -> Int[Tensor, "rows width"]:
    width = max(map(len, rows))
    fill = [[filler] * (width - len(row)) for row in rows]
    return torch.tensor([f + row if side == "left" else row + f for row, f in zip(rows, fill, strict=True)])


def _joined(rows: list[Images]) -> Images:
    """What the rows' images make, one after another; filled up with zeros where tiles or pixels differ in number."""
    joined = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        tensors = [row[name] for row in rows if name in row]
        shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        joined[name] = tensors[0].new_zeros(sum(map(len, tensors)), *shape)
        begin = 0
        for tensor in tensors:
            joined[name][(slice(begin, begin + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
            begin += len(tensor)
    return joined


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] or "" for part in message["content"])


def _pad_token_id(processor: ProcessorMixin) -> int:
    """The padding id; any token serves, as the attention mask hides it, except the image token."""
    pad = processor.tokenizer.pad_token_id
    pad = processor.tokenizer.eos_token_id if pad is None else pad
    if pad is None:
        raise DataError("the tokenizer has neither a padding nor an eos token; set tokenizer.pad_token")
    return int(pad)
