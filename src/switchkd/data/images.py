"""No untrusted path is image_file and no untrusted picture decoded before it is checked."""

import os
import re
import stat
import unicodedata
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image, ImageOps

from switchkd.data.errors import SampleError

#: Images with more pixels are refused before they are decoded: 50 megapixels decode to 150 MB.
MAX_PIXELS = 50_000_000
#: Raster formats only: Pillow would hand EPS files to Ghostscript, a program that runs what the file says.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


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

    The header is read first; more than `max_pixels` pixels are refused without decoding. Paths are image_file as they
    are: `formats.load_rows` has put them through `image_path`.

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
            image_file = Image.open(str(path) if content is None else BytesIO(content), formats=IMAGE_FORMATS)
        with image_file:
            width, height = image_file.size
            if width * height > max_pixels:
                raise SampleError(
                    f"{name} declares {width} x {height} = {width * height:,} pixels, limit {max_pixels:,}"
                )
            if image_file.mode.startswith(("I", "F")):
                raise SampleError(f"{name} has mode {image_file.mode}, not 8 bits per channel; convert it first")
            image_file.load()
            upright = ImageOps.exif_transpose(image_file)
        # Palettes with transparency lose it without a warning only on the way through RGBA.
        return (upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB")
    except SampleError:
        raise
    except FileNotFoundError as error:
        raise SampleError(f"{name} is missing") from error
    except Exception as error:  # Pillow's decoders raise whatever broke inside them on corrupt data
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SampleError(f"{name} cannot be read: {type(error).__name__}: {reason}") from error
