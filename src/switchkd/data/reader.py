"""What one model reads: canonical rows -> encoded samples -> tensors, padded right for training and left for generation."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, chain, islice
from typing import Any, Literal

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from switchkd.batch import Inputs, Media
from switchkd.data.answer_tokens import AnswerToken
from switchkd.data.chat_format import ChatFormat, Tokens
from switchkd.data.embedding_rows import check_ids, check_used_ids
from switchkd.data.errors import NO_FAULT_OF_THE_ROW, DataError, SampleError, UnequalVideosError
from switchkd.data.fingerprint import digest_of, reading_parts
from switchkd.data.images import MAX_PIXELS, open_images
from switchkd.data.media_processing import joined, of_row, read_pictures, read_video
from switchkd.data.resizing import resized_pixels
from switchkd.data.row_videos import videos_of
from switchkd.data.template_choice import choose_format
from switchkd.data.video_sampling import VideoSampling, sampling_of
from switchkd.data.videos import open_videos
from switchkd.models.families import Family, family_of_processor
from switchkd.names import Kind

logger = logging.getLogger(__name__)

#: Tokens of a sample at most where nobody asks for fewer: room for the largest image of any processor (Qwen-VL's are 16,384) and text.
LONGEST = 32_768
#: A text of so many characters is tokenised in any case, and cut.
_HARMLESS_CHARACTERS = 10_000
#: Parts of a fingerprint that are named one by one.
_NAMED = ("library", "template", "limits")

#: The first word that was warned of: in a script that a tokenizer lacks, every sample has new ones.
_named_unknown: list[str] = []


@dataclass(frozen=True)
class Encoded:
    """One sample as one model reads it."""

    tokens: list[int]
    #: Where the answer tokens are, ascending; never the first token, which nothing predicts.
    answers: list[int]
    #: What each token covers of its answer; None where that is nothing but space.
    covers: list[AnswerToken | None]
    #: Tokens before truncation.
    whole_length: int
    #: Token types, by the names of the model's arguments.
    types: dict[str, list[int]]
    #: What V looks at, by its kind.
    media: dict[Kind, Media]


class Reader:
    """A model's processor and chat template at work. Picklable, so that `DataLoader` workers can run it.

    `format` holds the chat template in use (see `choose_format`).

    Args:
        processor: the model's.
        template: which chat template: see `choose_format`.
        max_length: tokens of a sample, its visual tokens included: of a longer one, the last answers are cut, images and videos never.
        max_pixels: an image with more is refused before it is decoded; see `open_videos` for videos.
        sampling: which frames of a video are seen; if not given, as the processor's settings say.
        rows: of the model's embeddings, where the model is known; a row with an id beyond them cannot be used.
        multiple: a batch is as wide as its longest sample, rounded up to a multiple of this.

    Raises:
        DataError: at once, for processors that it cannot serve, and for ids in use that have no embedding.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        template: str = "own",
        max_length: int = LONGEST,
        max_pixels: int = MAX_PIXELS,
        sampling: VideoSampling | None = None,
        rows: int | None = None,
        multiple: int = 1,
    ) -> None:
        self.processor = processor
        self.multiple = multiple
        self.max_length = max_length
        self.max_pixels = max_pixels
        self.sampling = sampling or sampling_of(getattr(processor, "video_processor", None))
        self.format = choose_format(processor, template)
        _padding_id(processor, self.format)
        self.rows = rows

    @cached_property
    def ids(self) -> int:
        """So many first ids of the tokenizer are known to the model.

        Raises:
            DataError: for ids in use that it has no embedding for.
        """
        tokenizer = self.format.tokenizer
        highest: int = max(tokenizer.get_vocab().values())
        if self.rows is None or highest < self.rows:
            return highest + 1
        placeholders, _ = read_pictures(self.processor, self.format.image_token, [Image.new("RGB", (64, 64))])
        check_used_ids(self.format, self.rows, placeholders[0])
        return self.rows

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all that an encoded sample depends on besides its row: processor, template, limits."""
        return digest_of(self._parts)

    @property
    def named_parts(self) -> dict[str, str | int | None]:
        """The same in parts that a person can compare: library, chat template, limits, and a digest of the processor."""
        parts = self._parts
        processor = digest_of({name: part for name, part in parts.items() if name not in _NAMED}, size=8)
        template = digest_of(parts["template"], size=8)
        return {"processor": processor, "chat template": template, "transformers": parts["library"], **parts["limits"]}

    @property
    def _parts(self) -> dict[str, Any]:
        limits: dict[str, Any] = {"max_length": self.max_length, "max_pixels": self.max_pixels}
        if self.format.video_token is not None:
            limits["frames"] = (
                f"{self.sampling.fps:g} of a second, {self.sampling.min_frames} to {self.sampling.max_frames}"
            )
        if self.rows is not None and self.ids == self.rows < len(self.format.tokenizer):
            limits["rows"] = self.rows
        return reading_parts(self.processor, self.format.template, **limits)

    def encode(self, row: dict[str, Any]) -> Encoded:
        """Encode one row.

        Raises:
            SampleError: naming the row, if it cannot be used.
        """
        try:
            answers = [message for message in row["messages"] if message["role"] == "assistant"]
            if any(not _text(message).strip() for message in answers):
                raise SampleError("has an empty answer")
            if answers and all(message.get("learned") is False for message in answers):
                raise SampleError("has no answer token: all its answers are marked as not to be learned")
            tokens, media = self._read(row)
            return self._cut(tokens, media)
        except NO_FAULT_OF_THE_ROW:
            raise
        except DataError as error:
            raise SampleError(f"sample {row['id']!a}: {error}") from error

    def inputs(self, samples: list[Encoded], packs: Sequence[int] | None = None) -> Inputs:
        """Join samples: see `join`."""
        return join(samples, _padding_id(self.processor, self.format), packs, multiple=self.multiple)

    def prompts(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Conversations to be answered, padded on the left, with the beginning of an answer: what `generate` takes.

        Raises:
            SampleError: naming the row, for one whose last message is not the user's, or that cannot be used.
            UnequalVideosError: the model takes as many frames of each video of a batch, and these have not.
        """
        asked, media = [], []
        frames: set[int | None] = set()
        for row in rows:
            try:
                if not row["messages"] or row["messages"][-1]["role"] != "user":
                    raise SampleError("cannot be asked: its last message is not the user's")
                tokens, of_one = self._read(row, generation_prompt=True)
                of_each = _frames_of_each(of_one)
            except NO_FAULT_OF_THE_ROW:
                raise
            except DataError as error:
                raise SampleError(f"sample {row['id']!a}: {error}") from error
            asked.append(tokens)
            frames.add(of_each)
            media.append(of_one)
        types = [self._types(tokens.input_ids, tokens.is_answer) for tokens in asked]
        padding = _padding_id(self.processor, self.format)
        if len(counts := sorted(count for count in frames if count is not None)) > 1:
            raise UnequalVideosError(
                f"the model takes as many frames of each video of a batch, and these have {', '.join(map(str, counts))}: see as many of "
                "each with data.video.max_frames"
            )
        return {
            "input_ids": _padded([tokens.input_ids for tokens in asked], padding, "left"),
            "attention_mask": _padded([[1] * len(tokens.input_ids) for tokens in asked], 0, "left"),
            **{name: _padded([of_one[name] for of_one in types], 0, "left") for name in types[0]},
            **{name: tensor for one in _by_kind(media).values() for name, tensor in one.items()},
        }

    def _read(self, row: dict[str, Any], *, generation_prompt: bool = False) -> tuple[Tokens, dict[Kind, Media]]:
        """Open a row's images and videos, process them, and tokenise its messages around what the processor writes for them."""
        if row.get("problem"):
            raise SampleError(row["problem"])
        self._check_size(row["messages"])
        pictures = open_images(
            row["images"],
            max_pixels=self.max_pixels,
            resized=partial(resized_pixels, getattr(self.processor, "image_processor", None)),
            source=row.get("source"),
        )
        of_pictures: tuple[list[str], Media] = ([], {})
        if pictures:
            of_pictures = read_pictures(self.processor, self.format.image_token, pictures)
        of_videos = self._videos(row)
        tokens = self.format.tokenize(
            row["messages"], of_pictures[0], [text for text, _ in of_videos], generation_prompt=generation_prompt
        )
        if self.rows is not None:
            check_ids(self.format, tokens.input_ids, self.rows)
        if tokens.unknown:
            self._name_unknown(tokens)
        kinds = [part["type"] for message in row["messages"] for part in message["content"] if part["type"] != "text"]
        return tokens, of_row(self._family, kinds, of_pictures, of_videos, self.format.visual_token)

    @property
    def _family(self) -> type[Family] | None:
        return family_of_processor(self.processor)

    def _videos(self, row: dict[str, Any]) -> list[tuple[str, Media]]:
        """What the processor writes for each video of a row, and makes of it."""
        videos = videos_of(row)
        if not videos:
            return []
        token = self.format.video_token
        if token is None:
            raise SampleError(f"has {len(videos)} videos, and {self.format.no_videos}")
        opened = open_videos(videos, sampling=self.sampling, max_pixels=self.max_pixels, source=row.get("source"))
        return [read_video(self.processor, token, video) for video in opened]

    def _name_unknown(self, tokens: Tokens) -> None:
        """Say which word the tokenizer does not know: once, and in an error where all that is learned is the end of an answer."""
        special = self.format.tokenizer.unk_token
        answers = {token for token, is_answer in zip(tokens.input_ids, tokens.is_answer, strict=True) if is_answer}
        if answers and answers <= {self.format.closing_id}:
            raise SampleError(
                f"the tokenizer does not know {', '.join(map(ascii, dict.fromkeys(tokens.unknown)))[:200]}, and its answers hold "
                "nothing else that can be learned"
            )
        if not _named_unknown:
            _named_unknown.append(tokens.unknown[0])
            logger.warning(
                "the tokenizer does not know %a: models read %s in its place, and in answers it is not learned (said of the first "
                "such word)",
                tokens.unknown[0],
                special,
            )

    @cached_property
    def _most_characters(self) -> int:
        """More of them are more than `max_length` tokens, whatever they say: each token has a longest one's characters and a space."""
        return self.max_length * (1 + max(map(len, self.format.tokenizer.get_vocab())))

    def _check_size(self, messages: list[dict[str, Any]]) -> None:
        """Refuse a text that is far too long before it is rendered and tokenised, which takes a hundred times its memory."""
        characters = sum(len(_text(message)) + len(message.get("reasoning") or "") for message in messages)
        if characters > _HARMLESS_CHARACTERS and characters > self._most_characters:
            raise SampleError(
                f"has {characters:,} characters of text, and {self.max_length:,} tokens (max_length) are at most "
                f"{self._most_characters:,}; shorten it or raise max_length"
            )

    def _cut(self, tokens: Tokens, media: dict[Kind, Media]) -> Encoded:
        """Apply `max_length`: at the end only, never inside or before an image or a video."""
        count = len(tokens.input_ids)
        if tokens.images_end > self.max_length:
            raise SampleError(
                f"has {count} tokens and its last {tokens.last} ends at token {tokens.images_end}, but max_length is "
                f"{self.max_length}; raise max_length to {count}, or use fewer or smaller images, or fewer frames (data.video), in a row"
            )
        input_ids, is_answer = tokens.input_ids[: self.max_length], tokens.is_answer[: self.max_length]
        answers = [index for index, answer in enumerate(is_answer) if answer and index]
        if not answers:
            if not any(tokens.is_answer):
                raise SampleError("has no answer token: no assistant turn")
            first = tokens.is_answer.index(True)
            raise SampleError(
                f"has {count} tokens and its first answer begins at token {first}, but max_length is "
                f"{self.max_length}; raise max_length to {count}, or shorten the question"
            )
        covers = tokens.covers[: self.max_length]
        return Encoded(input_ids, answers, covers, count, self._types(input_ids, is_answer), media)

    def _types(self, input_ids: list[int], is_answer: list[bool]) -> dict[str, list[int]]:
        """The token types that the processor's model reads; none for most."""
        if self._family is None:
            return {}
        return self._family.token_types(input_ids, is_answer, self.format.image_token_id, self.format.video_token_id)


def join(samples: list[Encoded], padding: int, packs: Sequence[int] | None = None, *, multiple: int = 1) -> Inputs:
    """Samples in rows that are filled up on the right with `padding`: one in each row, or as many as `packs` says.

    The only place where answers are shifted against the positions that predict them: each is predicted one token before it.
    """
    counts = [1] * len(samples) if packs is None else packs
    lengths = [len(sample.tokens) for sample in samples]
    left_over = iter(lengths)
    of_rows = [list(islice(left_over, count)) for count in counts]
    width = math.ceil(max(map(sum, of_rows)) / multiple) * multiple
    begins: list[int] = []
    for number, row in enumerate(of_rows):
        begins += accumulate(row[:-1], initial=number * width)

    def filled(filler: int, of_samples: Iterable[list[int]]) -> Tensor:
        left = iter(of_samples)
        return _padded([list(chain(*islice(left, count))) for count in counts], filler, "right", width)

    places = [(number, column) for number, sample in enumerate(samples) for column in sample.answers]
    return Inputs(
        tokens=filled(padding, (sample.tokens for sample in samples)),
        lengths=torch.tensor(lengths),
        predicts=torch.tensor([begins[number] + column - 1 for number, column in places], dtype=torch.long),
        targets=torch.tensor([samples[number].tokens[column] for number, column in places], dtype=torch.long),
        sample=torch.tensor([number for number, _ in places], dtype=torch.long),
        media=_by_kind([sample.media for sample in samples]),
        types={name: filled(0, [sample.types[name] for sample in samples]) for name in samples[0].types},
        positions=None if packs is None else filled(0, (list(range(length)) for length in lengths)),
        offsets=None if packs is None else torch.tensor(begins),
    )


def _padded(
    rows: list[list[int]], filler: int, side: Literal["left", "right"], width: int | None = None
) -> Int[Tensor, "rows width"]:
    width = width or max(map(len, rows))
    fill = [[filler] * (width - len(row)) for row in rows]
    return torch.tensor([f + row if side == "left" else row + f for row, f in zip(rows, fill, strict=True)])


def _frames_of_each(media: dict[Kind, Media]) -> int | None:
    """How many frames each video of a row has, where videos are [videos, frames, …]; plain models take as many of each.

    Raises:
        SampleError: they differ, and shorter ones are filled up.
    """
    pixels = media["video"]["pixel_values_videos"] if "video" in media else None
    if pixels is None or pixels.ndim < 5:
        return None
    if not pixels.flatten(2).any(dim=-1).all():
        raise SampleError(
            "cannot be asked: the model takes as many frames of each of its videos, and they differ; see as many with data.video.max_frames"
        )
    return int(pixels.shape[1])


def _by_kind(samples: list[dict[Kind, Media]]) -> dict[Kind, Media]:
    """What the samples show, all of a kind together."""
    kinds: tuple[Kind, ...] = ("image", "video")
    return {
        kind: joined([one[kind] for one in samples if kind in one])
        for kind in kinds
        if any(kind in one for one in samples)
    }


def _text(message: dict[str, Any]) -> str:
    return "".join(part["text"] or "" for part in message["content"])


def _padding_id(processor: Any, chat: ChatFormat) -> int:
    """What fills up rows: the padding token, or eos where there is none or it is the image token, which padding must not be."""
    for candidate in (processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id):
        if candidate is not None and candidate != chat.image_token_id:
            return int(candidate)
    raise DataError(
        "the tokenizer has neither a padding nor an eos token that is not the image token; set tokenizer.pad_token"
    )
