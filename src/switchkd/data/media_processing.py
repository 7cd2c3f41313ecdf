"""What a processor makes of the pictures and videos of one row: what it writes for each, and what the model takes of them."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from switchkd.batch import Media
from switchkd.data.errors import SampleError
from switchkd.data.videos import Video
from switchkd.models.families import Family
from switchkd.names import Kind

_Made = TypeVar("_Made")
#: What a processor makes of text; all else that it makes is the images' or the videos'.
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")


def read_pictures(processor: ProcessorMixin, image_token: str, pictures: list[Image.Image]) -> tuple[list[str], Media]:
    """What the processor writes for each picture of a row, and what it makes of them.

    Raises:
        SampleError: pictures that it cannot process.
    """
    call: Any = processor
    processed = _called(
        processor,
        "images",
        lambda: call(
            text=[image_token * len(pictures)],
            images=[pictures],
            text_kwargs={"return_tensors": None},
            images_kwargs={"return_tensors": "pt"},
            return_text_replacement_offsets=True,
        ),
    )
    return _placeholders(processed), _media(processed)


def read_video(processor: ProcessorMixin, video_token: str, video: Video) -> tuple[str, Media]:
    """What the processor writes for a video, and what it makes of it.

    Raises:
        SampleError: a video that it cannot process.
    """
    call: Any = processor
    settings = {"return_tensors": "pt", "do_sample_frames": False, "return_metadata": True}
    processed = _called(
        processor,
        "videos",
        lambda: call(
            text=[video_token],
            videos=[video.frames],
            text_kwargs={"return_tensors": None},
            videos_kwargs={**settings, "video_metadata": [dict(video.metadata)]},
            return_text_replacement_offsets=True,
        ),
    )
    (placeholder,) = _placeholders(processed)
    return placeholder, _media(processed)


def _called(processor: ProcessorMixin, what: str, call: Callable[[], _Made]) -> _Made:
    try:
        return call()
    except ValueError as error:  # too small, too long and narrow, …
        raise SampleError(f"{type(processor).__name__} cannot process its {what}: {error}") from error
    except RuntimeError as error:
        if "allocate memory" in str(error):  # torch has no error of its own for that on a CPU
            raise MemoryError(str(error)) from error
        raise


def _placeholders(processed: Any) -> list[str]:
    return [place["replacement"] for place in processed["text_replacement_offsets"][0]]


def _media(processed: Any) -> Media:
    """Tensors, and lists of one number for each video, as tensors."""
    made = {name: value for name, value in processed.items() if name not in _TEXT}
    numbers = {
        name: torch.tensor(value)
        for name, value in made.items()
        if isinstance(value, list) and value and all(isinstance(one, float | int) for one in value)
    }
    return {name: value for name, value in made.items() if isinstance(value, Tensor)} | numbers


def of_row(
    family: type[Family] | None,
    kinds: Sequence[Kind],
    pictures: tuple[list[str], Media],
    videos: list[tuple[str, Media]],
    image_token: str,
) -> dict[Kind, Media]:
    """What the model takes of all that a row shows, by its kind; frames of videos that it takes as images are among these.

    Args:
        family: of the processor.
        kinds: what is shown, in order.
        pictures: what the processor writes for each, and makes of all of them.
        videos: the same of each video.
        image_token: what stands for each visual token of a picture.
    """
    media: dict[Kind, Media] = {"image": pictures[1]} if pictures[1] else {}
    if not videos:
        return media
    if family is None or family.video_inputs:
        return media | {"video": joined([made for _, made in videos])}
    axis = family.tile_axis
    of_pictures = iter(_each(*pictures, image_token, axis))
    of_videos = iter(made for _, made in videos)
    in_order = [next(of_pictures if kind == "image" else of_videos) for kind in kinds]
    try:
        return {
            "image": {name: torch.cat([made[name] for made in in_order], dim=axis) for name in in_order[0]},
        }
    except RuntimeError as error:
        raise SampleError(
            f"its pictures and the frames of its videos differ in size, so no model reads both: {error}"
        ) from error


def _each(placeholders: list[str], media: Media, image_token: str, axis: int) -> list[Media]:
    """The tiles of each picture: a tile has as many visual tokens as any other."""
    if not placeholders:
        return []
    tokens = [placeholder.count(image_token) for placeholder in placeholders]
    tiles = media["pixel_values"].shape[axis]
    counts = [count * tiles // sum(tokens) for count in tokens]
    split = {name: tensor.split(counts, dim=axis) for name, tensor in media.items()}
    return [{name: parts[number] for name, parts in split.items()} for number in range(len(tokens))]


def joined(samples: list[Media]) -> Media:
    """What the samples' images make, one after another; filled up with zeros where tiles, frames or pixels differ in number."""
    whole = {}
    for name in dict.fromkeys(name for media in samples for name in media):
        tensors = [media[name] for media in samples if name in media]
        shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        whole[name] = tensors[0].new_zeros(sum(map(len, tensors)), *shape)
        begin = 0
        for tensor in tensors:
            whole[name][(slice(begin, begin + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
            begin += len(tensor)
    return whole
