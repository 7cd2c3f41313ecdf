"""No untrusted path is opened and no untrusted picture decoded before it is checked."""

import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image, ImageOps, UnidentifiedImageError

from switchkd.data.errors import SampleError

#: Images with more pixels are refused before they are decoded: 50 megapixels decode to 150 MB.
MAX_PIXELS = 50_000_000
#: Raster formats only: Pillow would hand EPS files to Ghostscript, a program that runs what the file says.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

#: A drive, a scheme and a slash, or a scheme that needs none; `frame12:30.png` is a name.
_URL = re.compile(r"\s*([a-z]:|[a-z][a-z0-9+.-]*:/|(file|data|blob|https?|ftp|pipe|javascript|mailto):)", re.IGNORECASE)


def image_path(root: Path, name: str, what: str = "image") -> Path:
    """Where the image called `name`, or the video (`what`), in a data file lies: below `root`, whatever the data file says. Opens nothing.

    Raises `SampleError` for a path that is empty, absolute and not below `root`, or a URL, that names a parent folder or a drive, that
    holds backslashes or control characters, or that leads out of `root` through a symbolic link. Percent-encoded and
    Unicode-equivalent spellings of these are refused as well.
    """
    name = _below(root, name)
    spellings = {name, unquote(name), unquote(unquote(name))}
    for form in {unicodedata.normalize("NFKC", spelling) for spelling in spellings}:
        if problem := _path_problem(form):
            raise SampleError(f"{what} path {shown_name(name)} {problem}; write it relative to the image folder {root}")
    try:
        real_root = os.path.realpath(root)
        real = os.path.realpath(os.path.join(real_root, name))
    except (OSError, ValueError) as error:
        raise SampleError(f"{what} path {shown_name(name)} cannot be resolved: {error}") from error
    if real == real_root or os.path.commonpath([real, real_root]) != real_root:
        raise SampleError(f"{what} path {shown_name(name)} leads out of the image folder {root}")
    return Path(real)


def _below(root: Path, name: str) -> str:
    """An absolute path that begins with the folder's, as what follows that; any other as it is."""
    for folder in (os.path.abspath(root), os.path.realpath(root)):
        if name.startswith(before := f"{folder.rstrip('/')}/"):
            return name.removeprefix(before)
    return name


def shown_name(name: str) -> str:
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
    if _URL.match(name):
        return "is a URL or names a drive, and nothing is fetched"
    if name.lstrip().startswith(("/", "~")):
        return "is not relative, nor in that folder"
    if ".." in (part.strip() for part in name.split("/")):
        return "names a parent folder"
    return None


def open_image(image: dict[str, Any], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in `{"bytes": ..., "path": ...}`: see `open_images`."""
    return open_images([image], max_pixels=max_pixels)[0]


def open_images(
    images: Sequence[dict[str, Any]],
    *,
    max_pixels: int = MAX_PIXELS,
    resized: Callable[[int, int], int] | None = None,
    source: str | None = None,
) -> list[Image.Image]:
    """The RGB images of one row, each of `{"bytes": ..., "path": ...}` (bytes win), upright as its EXIF orientation says.

    What is transparent is white. The headers are read first: as soon as the images have more than `max_pixels` pixels together, nothing
    more is decoded. Paths are those that `formats.load_rows` has resolved: the opened file itself is checked, and one that is now
    reached through a symbolic link is refused.

    Args:
        images: of one row, in order.
        max_pixels: of all of them together; also of what the processor makes of them.
        resized: width and height → the pixels that the processor makes of them.
        source: where the row stands, to name images that have no path.

    Raises:
        SampleError: for images that are missing, too large, corrupt, truncated, or not 8 bits per channel.
        MemoryError: there is not enough for it.
    """
    opened: list[Image.Image] = []
    pixels = pixels_resized = 0
    for number, image in enumerate(images, start=1):
        name = _name(image, number, len(images), source)
        try:
            with checked_file(image, name) as file, warnings.catch_warnings():
                # Pillow warns near its own limit; `max_pixels` is checked below.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(file, formats=IMAGE_FORMATS) as picture:
                    width, height = picture.size
                    pixels += width * height
                    pixels_resized += resized(width, height) if resized else 0
                    _check_pixels(name, width, height, pixels, pixels_resized, max_pixels)
                    opened.append(_decoded(picture, name))
        except (SampleError, MemoryError):
            raise
        except FileNotFoundError as error:
            raise SampleError(f"{name} is missing") from error
        except UnidentifiedImageError as error:
            raise SampleError(
                f"{name} cannot be read: it is no picture in one of {', '.join(IMAGE_FORMATS)}"
            ) from error
        except Exception as error:  # Pillow's decoders raise whatever broke inside them on corrupt data
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SampleError(f"{name} cannot be read: {type(error).__name__}: {reason}") from error
    return opened


def _name(image: dict[str, Any], number: int, count: int, source: str | None) -> str:
    if image.get("path") is not None:
        name = f"image {shown_name(str(image['path']))}"
    else:
        name = "embedded image" + (f" {number} of {count}" if count > 1 else "")
    return name + (f" ({source})" if source and image.get("bytes") is not None else "")


def open_picture_file(image: dict[str, Any]) -> BytesIO | BufferedReader:
    """The file of `{"bytes": ..., "path": ...}` as it is, not decoded; errors as `open_images`, and OSError."""
    name = _name(image, 1, 1, None)
    try:
        return checked_file(image, name)
    except FileNotFoundError as error:
        raise SampleError(f"{name} is missing") from error


def checked_file(image: dict[str, Any], name: str) -> BytesIO | BufferedReader:
    """The content of `{"bytes": ..., "path": ...}`, opened once: what is checked is what is read. `name` is for errors."""
    content, path = image.get("bytes"), image.get("path")
    if content is not None:
        return BytesIO(content)
    if path is None:
        raise SampleError(f"{name} has neither bytes nor a path")
    # a pipe must not be waited for
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        problem = "is not a regular file"
    elif os.path.realpath(path) != os.path.abspath(path) or not os.path.samestat(status, os.lstat(path)):
        problem = "leads elsewhere through a symbolic link that was not there when the data file was read"
    else:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise SampleError(f"{name} {problem}")


def _check_pixels(name: str, width: int, height: int, pixels: int, pixels_resized: int, max_pixels: int) -> None:
    declares = f"{name} declares {width} x {height}"
    if width * height > max_pixels:
        raise SampleError(f"{declares} = {width * height:,} pixels, limit {max_pixels:,}")
    if pixels > max_pixels:
        raise SampleError(
            f"{declares}, and with the images before it in the row that is {pixels:,} pixels, limit {max_pixels:,} (data.max_pixels)"
        )
    if pixels_resized > max_pixels:
        raise SampleError(
            f"{declares}, and the processor makes {pixels_resized:,} pixels of the row's images up to it, limit {max_pixels:,} "
            "(data.max_pixels): cut the picture, it is long and narrow"
        )


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    """Upright, RGB, on white; without a copy where it is that already."""
    if picture.mode.startswith(("I", "F")):
        raise SampleError(f"{name} has mode {picture.mode}, not 8 bits per channel; convert it first")
    picture.load()
    ImageOps.exif_transpose(picture, in_place=True)
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    transparent = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    white = Image.new("RGB", picture.size, "white")
    white.paste(transparent, mask=transparent)
    return white
