"""Which frames of a video a model sees."""

from dataclasses import dataclass
from typing import Any

#: Frames of a second, and of a video, where neither the recipe nor the processor says how many.
FPS, MAX_FRAMES = 2.0, 32


@dataclass(frozen=True)
class VideoSampling:
    """Frames evenly over the whole video: so many of each second, and of a longer video as many as there may be.

    One rule for all processors: a student and its teacher see the same frames.
    """

    fps: float = FPS
    max_frames: int = MAX_FRAMES
    #: A video has at least so many, as long as it has them.
    min_frames: int = 1

    def places(self, frames: int, fps: float) -> list[int]:
        """Numbers of the frames that are seen, ascending, of a video of so many frames, of which a second has `fps`."""
        most = min(self.max_frames, frames)
        return _spread(frames, min(max(int(frames / fps * self.fps), self.min_frames, 1), most))

    def of_list(self, frames: int) -> list[int]:
        """The same of frames that were chosen by somebody else, who took `fps` of each second: all, as far as there may be so many."""
        return _spread(frames, min(self.max_frames, frames))


def sampling_of(video_processor: Any, fps: float | None = None, max_frames: int | None = None) -> VideoSampling:
    """What is given, else what the processor's settings say, else two frames of a second and at most 32."""
    most = max_frames or _number(video_processor, "num_frames") or _number(video_processor, "max_frames") or MAX_FRAMES
    least = min(_number(video_processor, "min_frames") or 1, most)
    return VideoSampling(float(fps or _number(video_processor, "fps") or FPS), int(most), int(least))


def use_sampling(video_processor: Any, fps: float | None, max_frames: int | None) -> None:
    """Make what is given the processor's own settings, as they are saved: a student is shown videos as it was trained."""
    if fps is not None:
        video_processor.fps = fps
    if max_frames is not None:
        name = "max_frames" if _number(video_processor, "num_frames") is None else "num_frames"
        setattr(video_processor, name, max_frames)


def _number(video_processor: Any, name: str) -> float | int | None:
    number: float | int | None = getattr(video_processor, name, None)
    return number


def _spread(frames: int, count: int) -> list[int]:
    """So many numbers from the first frame to the last one."""
    return [round(place * (frames - 1) / max(count - 1, 1)) for place in range(count)]
