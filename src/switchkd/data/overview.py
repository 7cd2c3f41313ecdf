"""What is understood of data before anything is trained on it: forms, keys, counts, problems, and some rows to look at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from switchkd.data.errors import SampleError
from switchkd.data.formats import Reading
from switchkd.data.forms import Row
from switchkd.data.images import open_picture_file
from switchkd.data.row_form import Noted
from switchkd.data.row_videos import video_files, videos_of
from switchkd.data.sources import Data

#: Problems that are kept.
_SHOWN = 5


@dataclass
class Overview:
    """Of all rows of some data."""

    rows: int = 0
    #: Rows that cannot be used, or of which a picture cannot be opened.
    bad: int = 0
    #: Pictures in files, and inside of the data.
    files: int = 0
    embedded: int = 0
    #: Videos, wherever they are.
    videos: int = 0
    #: Answers, and how many of them are learned.
    answers: int = 0
    learned: int = 0
    #: Of each source, by its name.
    sources: dict[str, Noted] = field(default_factory=dict)
    #: What is wrong with the first bad rows.
    problems: list[str] = field(default_factory=list)
    #: The first usable rows.
    examples: list[Row] = field(default_factory=list)


def look_over(
    data: Data, image_root: str | Path | None = None, columns: Mapping[str, str] | None = None, *, examples: int = 3
) -> Overview:
    """Read all rows, and open every picture's file without decoding it. Nothing is kept in the cache.

    Args:
        data: anything `load_rows` reads; the next arguments too.
        image_root: the folder that image paths begin in.
        columns: our names of columns → the data's.
        examples: rows to show.

    Raises:
        DataError: as `load_rows`.
    """
    reading = Reading(data, image_root, columns or {})
    seen = Overview()
    for row in reading.rows():
        seen.rows += 1
        answers = [message for message in row["messages"] if message["role"] == "assistant"]
        seen.answers += len(answers)
        seen.learned += sum(message["learned"] for message in answers)
        seen.embedded += sum(image["bytes"] is not None for image in row["images"])
        seen.files += sum(image["bytes"] is None for image in row["images"])
        seen.videos += len(videos_of(row))
        if (problem := row["problem"] or _picture_problem(row)) is not None:
            seen.bad += 1
            if len(seen.problems) < _SHOWN:
                seen.problems.append(problem)
        elif len(seen.examples) < examples:
            seen.examples.append(row)
    seen.sources = {source.name: noted for (source, *_), noted in zip(reading.sources, reading.noted, strict=True)}
    return seen


def _picture_problem(row: Row) -> str | None:
    files = [{"bytes": None, "path": file} for video in videos_of(row) for file in video_files(video)]
    for image in [*row["images"], *(frame for video in videos_of(row) for frame in video["frames"]), *files]:
        try:
            open_picture_file(image).close()
        except (SampleError, OSError) as error:
            return f"{row['source']} (id {row['id']!a}): {error}"
    return None
