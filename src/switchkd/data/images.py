"""Nothing untrusted is opened, decoded or trained on before it is checked: paths, pixels, whole rows."""

import json
import logging
import os
import re
import stat
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import unquote

import torch
from datasets import Dataset
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from switchkd.data.errors import DataError, SampleError

IGNORE_INDEX = -100

logger = logging.getLogger(__name__)

#: Images with more pixels are refused before they are decoded: 50 megapixels decode to 150 MB.
MAX_PIXELS = 50_000_000
#: Raster formats only: Pillow would hand EPS files to Ghostscript, a program that runs what the file says.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: Above so many rows the check is worth starting processes for.
_ROWS_PER_WORKER = 2_000
_T = TypeVar("_T")


def image_path(root: Path, name: str) -> Path:
    """Where the image called `name` in a data file lies: below `root`, whatever the data file says. Opens nothing.

    Raises `SampleError` for a path that is empty, absolute or a URL, that names a parent folder or a drive, that holds
    backslashes or control characters, or that leads out of `root` through a symbolic link. Percent-encoded and
    Unicode-equivalent spellings of these are refused as well.
    """
    spellings = {name, unquote(name), unquote(unquote(name))}
    for form in {unicodedata.normalize("NFKC", spelling) for spelling in spellings}:
        if problem := _path_problem(form):
            raise SampleError(f"image path {_shown(name)} {problem}; write it relative to the image folder {root}")
    try:
        real_root = os.path.realpath(root)
        real = os.path.realpath(os.path.join(real_root, name))
    except (OSError, ValueError) as error:
        raise SampleError(f"image path {_shown(name)} cannot be resolved: {error}") from error
    if real == real_root or os.path.commonpath([real, real_root]) != real_root:
        raise SampleError(f"image path {_shown(name)} leads out of the image folder {root}")
    return Path(real)


def _shown(name: str) -> str:
    """`name` in a form that is safe and short enough for a log."""
    return ascii(name if len(name) <= 200 else name[:200] + "…")


def _path_problem(name: str) -> str | None:
    """What is wrong with the spelling of a path, if anything."""
    if not name.strip():
        return "is empty"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "holds control characters or broken Unicode"
    if "\\" in name:
        return "holds a backslash"
    if re.match(r"\s*[A-Za-z][A-Za-z0-9+.-]*:", name):
        return "is a URL or names a drive"
    if name.lstrip().startswith(("/", "~")):
        return "is not relative"
    if ".." in (part.strip() for part in name.split("/")):
        return "names a parent folder"
    return None


def open_image(image: dict[str, Any], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The RGB image in `{"bytes": ..., "path": ...}` (bytes win), upright as its EXIF orientation says.

    The header is read first; more than `max_pixels` pixels are refused without decoding. Paths are opened as they
    are: `sources.load_rows` has put them through `image_path`.

    Raises `SampleError` for images that are missing, too large, corrupt, truncated, or not 8 bits per channel.
    """
    content, path = image.get("bytes"), image.get("path")
    name = "embedded image" if path is None else f"image {_shown(str(path))}"
    if content is None and path is None:
        raise SampleError("image has neither bytes nor a path")
    try:
        if content is None and not stat.S_ISREG(os.stat(str(path)).st_mode):
            raise SampleError(f"{name} is not a regular file")
        with warnings.catch_warnings():
            # Pillow warns near its own limit; ours is checked two lines below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(str(path) if content is None else BytesIO(content), formats=IMAGE_FORMATS)
        with opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise SampleError(
                    f"{name} declares {width} x {height} = {width * height:,} pixels, limit {max_pixels:,}"
                )
            if opened.mode.startswith(("I", "F")):
                raise SampleError(f"{name} has mode {opened.mode}, not 8 bits per channel; convert it first")
            opened.load()
            upright = ImageOps.exif_transpose(opened)
        # Palettes with transparency lose it without a warning only on the way through RGBA.
        return (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
    except SampleError:
        raise
    except FileNotFoundError as error:
        raise SampleError(f"{name} is missing") from error
    except Exception as error:  # Pillow's decoders raise whatever broke inside them on corrupt data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SampleError(f"{name} cannot be read: {type(error).__name__}: {reason}") from error


class EncodedRow(Protocol):
    """What the check needs to know of an encoded row."""

    input_ids: list[int]
    labels: list[int]
    tokens: int


@runtime_checkable
class Encoder(Protocol):
    """What the check needs of a collator: it encodes one row, or raises `SampleError`."""

    def encode(self, row: dict[str, Any]) -> Any:
        """Encode one canonical row; the result has the fields of `EncodedRow`."""


class _Verdicts(TorchDataset):
    """Per row `(length, answer tokens, tokens before truncation, why it is bad or None)`; picklable for workers."""

    def __init__(self, rows: Dataset, encoder: Encoder) -> None:
        self.rows = rows
        self.encoder = encoder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, int, int, str | None]:
        try:
            encoded: EncodedRow = self.encoder.encode(self.rows[index])
        except SampleError as error:
            return 0, 0, 0, str(error)
        answers = sum(label != IGNORE_INDEX for label in encoded.labels[1:])
        return len(encoded.input_ids), answers, encoded.tokens, None


def check_rows(
    rows: Dataset, collator: Encoder, *, max_bad_fraction: float = 0.01, report_path: str | Path | None = None
) -> Dataset:
    """Encode every row once, before training: the usable rows, with `length` and `answer_tokens` (in tokens) added.

    Bad rows (images that are missing, corrupt, too large or outside the image folder; no answer token; too long) are
    skipped, never silently: each is logged with its id and reason and listed in `report_path` (JSON). Rows whose last
    answer was cut at the collator's `max_length` are kept and listed as truncated.

    Raises `DataError` if there is no row, if no row is usable, or if more than `max_bad_fraction` of them are bad. The
    report is written first.
    """
    if len(rows) == 0:
        raise DataError("there are no rows to check; look at the data file")
    workers = min(len(rows) // _ROWS_PER_WORKER, os.cpu_count() or 1, 16)
    # Its own generator: the loader must not draw from the global one that training is seeded with.
    verdicts = DataLoader(
        _Verdicts(rows, collator), batch_size=None, num_workers=workers, generator=torch.Generator().manual_seed(0)
    )
    kept, lengths, answer_tokens = [], [], []
    bad, truncated = [], []
    for index, (length, answers, tokens, reason) in enumerate(_with_progress(verdicts, len(rows))):
        lengths.append(length)
        answer_tokens.append(answers)
        if reason is not None:
            bad.append({"id": rows[index]["id"], "reason": reason})
            logger.warning("skipped %s", reason)
            continue
        kept.append(index)
        if length < tokens:
            truncated.append({"id": rows[index]["id"], "tokens": tokens, "kept_tokens": length})
    if truncated:
        logger.warning(
            "%d of %d samples are longer than max_length; their last answers are cut", len(truncated), len(rows)
        )
    if report_path is not None:
        summary = {"rows": len(rows), "kept": len(kept), "max_bad_fraction": max_bad_fraction}
        report = json.dumps(summary | {"bad": bad, "truncated": truncated}, indent=2, ensure_ascii=False)
        Path(report_path).write_text(report + "\n", encoding="utf-8", errors="backslashreplace")
    if not kept or len(bad) > max_bad_fraction * len(rows):
        examples = "; ".join(entry["reason"] for entry in bad[:3])
        where = f", all listed in {report_path}" if report_path is not None else ""
        raise DataError(
            f"{len(bad)} of {len(rows)} samples ({len(bad) / len(rows):.1%}) are unusable, more than the allowed "
            f"{max_bad_fraction:.1%}{where}. First: {examples}. Repair the data or raise the allowed fraction."
        )
    columns = [column for column in rows.column_names if column != "problem"]
    measured = rows.select_columns(columns).add_column("length", lengths).add_column("answer_tokens", answer_tokens)
    return measured.select(kept)


def _with_progress(items: Iterable[_T], total: int) -> Iterator[_T]:
    """Yield `items` under a rich bar on a terminal, or with a plain line every tenth of the way."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, "Checking samples", total=total, console=console, transient=True)
        return
    for done, item in enumerate(items, start=1):
        yield item
        if done * 10 // total > (done - 1) * 10 // total:
            print(f"checking samples: {done} of {total}", file=sys.stderr, flush=True)
