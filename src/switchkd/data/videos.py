"""No untrusted video is opened before its path is checked, and no more of it decoded than a row may have."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import UInt8
from transformers.video_utils import VideoMetadata

from switchkd.data.errors import MissingDecoderError, SampleError
from switchkd.data.images import MAX_PIXELS, checked_file, open_images, shown_name
from switchkd.data.row_videos import FRAME_FILES, listed_frames
from switchkd.data.video_sampling import VideoSampling

#: The frames of a row's videos may have so many times the pixels that its images may: 200 megapixels are 600 MB.
VIDEO_PIXELS = 4
#: Containers by the names that FFmpeg's demuxers have: no playlist or script, which would open other files and addresses.
_CONTAINERS = (
    "mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "gif",
)  # fmt: skip


@dataclass(frozen=True)
class Video:
    """The frames that are seen of a video, and what is known of it."""

    frames: UInt8[np.ndarray, "frames height width 3"]
    metadata: VideoMetadata


def open_videos(
    videos: Sequence[dict[str, Any]],
    *,
    sampling: VideoSampling,
    max_pixels: int = MAX_PIXELS,
    source: str | None = None,
) -> list[Video]:
    """The frames of one row's videos, each of `{"bytes": ..., "path": ..., "frames": [...]}`.

    Sizes are looked at before anything is decoded. Paths are those that `formats.load_rows` has resolved: see `open_images`.

    Args:
        videos: of one row, in order. A path is a file, or a folder of frames.
        sampling: which frames are seen.
        max_pixels: of one frame; those that are seen of all videos may have `VIDEO_PIXELS` times as many.
        source: where the row stands, to name videos that have no path.

    Raises:
        SampleError: for videos that are missing, empty, too large, broken, or whose frames differ in size.
        MissingDecoderError: the package that decodes videos is not installed.
    """
    opened: list[Video] = []
    left = VIDEO_PIXELS * max_pixels
    for number, one in enumerate(videos, start=1):
        name = _name(one, number, len(videos), source)
        frames = one["frames"] or _frames_of_folder(one, name)
        video = (
            _of_frames(frames, name, sampling, max_pixels, left)
            if frames
            else _of_file(one, name, sampling, max_pixels, left)
        )
        left -= video.frames.shape[0] * video.frames.shape[1] * video.frames.shape[2]
        opened.append(video)
    return opened


def _name(video: dict[str, Any], number: int, count: int, source: str | None) -> str:
    if video["path"] is not None:
        return f"video {shown_name(str(video['path']))}"
    name = f"video of {len(video['frames'])} frames" if video["frames"] else "embedded video"
    name += f" {number} of {count}" if count > 1 else ""
    return name + (f" ({source})" if source else "")


def _frames_of_folder(video: dict[str, Any], name: str) -> list[dict[str, Any]]:
    path = video["path"]
    if path is None or not os.path.isdir(path):
        return []
    if not (frames := listed_frames(Path(path))):
        raise SampleError(f"{name} is a folder with 0 frames: put pictures into it ({', '.join(FRAME_FILES)})")
    return frames


def _of_frames(
    listed: Sequence[dict[str, Any]], name: str, sampling: VideoSampling, max_pixels: int, left: int
) -> Video:
    places = sampling.of_list(len(listed))
    try:
        (first,) = open_images([listed[places[0]]], max_pixels=max_pixels)
        width, height = first.size
        _check_pixels(name, len(places), width, height, max_pixels, left)
        pictures = [first, *open_images([listed[place] for place in places[1:]], max_pixels=left)]
    except SampleError as error:
        raise SampleError(f"{name}: of its {len(listed)} frames, {error}") from error
    for place, picture in zip(places, pictures, strict=True):
        if picture.size != first.size:
            raise SampleError(
                f"{name}: frame {place + 1} of {len(listed)} is {picture.width} x {picture.height} pixels, the first {width} x {height}: "
                "a video's frames must have one size"
            )
    metadata = VideoMetadata(
        total_num_frames=len(listed),
        fps=sampling.fps,
        duration=len(listed) / sampling.fps,
        width=width,
        height=height,
        frames_indices=places,
    )
    return Video(np.stack([np.asarray(picture) for picture in pictures]), metadata)


def _check_pixels(name: str, count: int, width: int, height: int, max_pixels: int, left: int) -> None:
    if width * height > max_pixels:
        raise SampleError(
            f"{name} declares frames of {width} x {height} = {width * height:,} pixels, limit {max_pixels:,} (data.max_pixels)"
        )
    if count * width * height > left:
        raise SampleError(
            f"{name}: {count} frames of {width} x {height} are seen of it, {count * width * height:,} pixels, and {left:,} are left of "
            f"what the videos of a row may have ({VIDEO_PIXELS} times data.max_pixels): lower data.video.max_frames or data.video.fps, or "
            "make the video smaller"
        )


def _of_file(video: dict[str, Any], name: str, sampling: VideoSampling, max_pixels: int, left: int) -> Video:
    av = _decoder(name)
    try:
        with (
            checked_file(video, name) as file,
            av.open(file, options={"format_whitelist": ",".join(_CONTAINERS)}, metadata_errors="replace") as container,
        ):
            return _decoded(container, name, sampling, max_pixels, left)
    except FileNotFoundError as error:
        raise SampleError(f"{name} is missing") from error
    except av.FFmpegError as error:
        raise SampleError(
            f"{name} cannot be read as a video ({error.strerror or error}): it is empty, broken or of another format"
        ) from error


def _decoded(container: Any, name: str, sampling: VideoSampling, max_pixels: int, left: int) -> Video:
    if not container.streams.video:
        raise SampleError(f"{name} has no video stream")
    stream = container.streams.video[0]
    total = stream.frames or _counted(container, stream)
    if not total:
        raise SampleError(f"{name} has 0 frames")
    fps = float(stream.average_rate or stream.guessed_rate or sampling.fps)
    width, height = stream.codec_context.width, stream.codec_context.height
    places = sampling.places(total, fps)
    _check_pixels(name, len(places), width, height, max_pixels, left)
    wanted, kept, count = set(places), {}, 0
    for count, frame in enumerate(container.decode(stream), start=1):
        if (frame.width, frame.height) != (width, height):
            raise SampleError(
                f"{name}: frame {count} of {total} is {frame.width} x {frame.height} pixels, and {width} x {height} are declared"
            )
        if count - 1 in wanted:
            kept[count - 1] = frame.to_ndarray(format="rgb24")
        if count > places[-1]:
            break
    if len(kept) < len(wanted):
        raise SampleError(
            f"{name} declares {total} frames, and {count} of them can be decoded: it is cut off or broken; write it anew"
        )
    metadata = VideoMetadata(
        total_num_frames=total,
        fps=fps,
        duration=total / fps,
        width=width,
        height=height,
        video_backend="pyav",
        frames_indices=places,
    )
    return Video(np.stack([kept[place] for place in places]), metadata)


def _counted(container: Any, stream: Any) -> int:
    """The frames of a container whose header does not say how many, as Matroska's; nothing is decoded."""
    count: int = sum(packet.size > 0 for packet in container.demux(stream))
    container.seek(0)
    return count


def _decoder(name: str) -> ModuleType:
    try:
        return import_module("av")
    except ImportError:
        raise MissingDecoderError(
            f"{name} is decoded by the package `av` (PyAV), which is not installed: pip install 'switchkd[video]', or give the frames of "
            "each video as a list of pictures"
        ) from None
