"""The section `data` of a recipe: what is read, and how much of it."""

from dataclasses import dataclass, field

from switchkd.data.errors import MAX_BAD_FRACTION
from switchkd.data.forms import check_columns
from switchkd.data.images import MAX_PIXELS
from switchkd.recipe.field_checks import at_least, require, share
from switchkd.typed_fields import check_fields


@dataclass(frozen=True)
class WeightedData:
    """Data whose rows are seen more often than once in an epoch, or not all of them, or that a teacher of their own teaches."""

    #: As in `data.train`.
    path: str
    #: 2: every row twice in an epoch. 0.5: a random half of the rows, by `train.seed`, the same in every epoch.
    weight: float = 1.0
    #: The name in `teachers` of the one that teaches its rows, as far as they do not say themselves by which they are taught.
    teacher: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.path), "path must name a file or a folder")
        require(0 < self.weight <= 1000, f"weight must be above 0 and at most 1000, got {self.weight:g}")


#: What rows are read from.
Named = str | WeightedData | tuple[str | WeightedData, ...]


@dataclass(frozen=True)
class Video:
    """Frames evenly over a video. What is not given is what the student's processor says, else 2 of a second and at most 32."""

    #: Frames of a second. Frames that are given as a list count as taken at this rate, and all are seen.
    fps: float | None = None
    #: Of one video, however long it is.
    max_frames: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        require(
            self.fps is None or 0 < self.fps <= 1000, f"fps must be above 0 and at most 1000, or none, got {self.fps}"
        )
        require(
            self.max_frames is None or self.max_frames >= 1,
            f"max_frames must be at least 1, or none, got {self.max_frames}",
        )


@dataclass(frozen=True)
class Data:
    """Training rows, in any of the forms and files of docs/data.md; detected."""

    #: A file, a folder, a glob, or a data set of the hub (NAME:CONFIG:SPLIT); or a list of these. `{path: a.json, weight: 2}` in the place
    #: of a name sees its rows twice in an epoch, with a weight of 0.5 half of them. `{path: a.json, teacher: ocr}` has them taught by
    #: `ocr` of `teachers`.
    train: Named
    #: Rows that are held out: named as in `train`, and measured while it trains (`train.eval_steps`).
    validation: Named | None = None
    #: Where image paths start; the data file's own folder if not given.
    image_root: str | None = None
    #: Columns that have names of their own: `{question: q, answer: a, image: img}`. Ours come first.
    columns: dict[str, str] = field(default_factory=dict)
    #: The student's chat template: its `own` (one of ours only where it has none that can be used), `llava` (LLaVA 1.5's), or a file.
    template: str = "own"
    #: Train on the first so many rows; on all of them if not given.
    rows: int | None = None
    #: Tokens of a row, its visual tokens included; of a longer row, the end of the last answer is cut off. If not given, as many as both
    #: models have positions for, up to 32,768.
    max_length: int | None = None
    #: Several samples in one row, each read as if it were alone, so that hardly anything is padding. A row is at most `max_length` tokens
    #: (if not given: as long as the longest sample), and `train.per_device_train_batch_size` counts such rows.
    packing: bool = False
    #: Read rows as they come, from hub names, globs and folders of files, in the place of looking at all of them first. Each file is a
    #: shard; ranks read different ones. Needs `train.max_steps`.
    streaming: bool = False
    #: With `streaming`: so many rows are held by each process that reads, and drawn from at random.
    shuffle_buffer: int = 1_000
    #: An image with more pixels is refused before it is decoded. The frames that are seen of a row's videos may have four times as many.
    max_pixels: int = MAX_PIXELS
    #: Which frames of a video are seen; the same for student and teacher, and saved with the student.
    video: Video = field(default_factory=Video)
    #: The run stops when more than this share of the rows cannot be used.
    max_bad_fraction: float = MAX_BAD_FRACTION

    def __post_init__(self) -> None:
        check_fields(self)
        require(bool(self.train), "train must name a file or a folder")
        require(self.validation is None or bool(self.validation), "validation must name a file or a folder, or be none")
        check_columns(self.columns)
        require(self.rows is None or self.rows >= 1, f"rows must be at least 1, or none for all, got {self.rows}")
        at_least(self, 1, "max_length", "max_pixels", "shuffle_buffer")
        require(
            not self.streaming or self.rows is None,
            f"streaming is true and rows is {self.rows}: a stream has no first rows, because it is shuffled; leave rows out",
        )
        share(self, "max_bad_fraction")


def data_weights(data: Named) -> list[tuple[str, float]]:
    """What a stage's `data` names, each with its weight."""
    return [(one.path, one.weight) for one in _listed(data)]


def data_names(data: Named) -> list[str]:
    """What a stage's `data` names."""
    return [one.path for one in _listed(data)]


def data_teachers(data: Named) -> list[str | None]:
    """For each of the names of a stage's `data`, by whom its rows are taught where they do not say it."""
    return [one.teacher for one in _listed(data)]


def _listed(data: Named) -> list[WeightedData]:
    listed = (data,) if isinstance(data, str | WeightedData) else data
    return [WeightedData(one) if isinstance(one, str) else one for one in listed]
