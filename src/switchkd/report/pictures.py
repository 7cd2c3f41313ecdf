"""Images for the page: small, and attention laid over them."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from plotly.colors import hex_to_rgb, sequential

#: Pixels of the longer side of an image in the page.
SIDE = 224


def small(picture: bytes) -> Image.Image:
    """The image, not larger than the page shows it."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return image


def uri(image: Image.Image) -> str:
    """The image inside of a URI: PNG for drawings of few pixels, WebP for photographs."""
    file = io.BytesIO()
    if max(image.size) <= SIDE // 2:
        image.save(file, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    image.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def overlay(picture: bytes, attention: Sequence[Sequence[float]]) -> Image.Image:
    """The image in grey under the attention: dark where there is none, bright where this map is largest."""
    image = small(picture)
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    values = np.asarray(attention, dtype=np.float64)
    shares = (values - values.min()) / (np.ptp(values) or 1)
    heat = Image.fromarray(np.round(255 * shares).astype(np.uint8))
    grey = image.convert("L").resize(size, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.BICUBIC)
    warm = _COLOURS[np.asarray(heat.resize(size, Image.Resampling.BICUBIC))]
    return Image.fromarray((0.4 * np.asarray(grey, dtype=np.float64)[..., None] + 0.6 * warm).astype(np.uint8))


def _ramp() -> np.ndarray:
    """256 colours from black over violet to yellow; their lightness rises evenly, so they read without colours too."""
    stops = np.array([hex_to_rgb(colour) for colour in sequential.Inferno], dtype=np.float64)
    places = np.linspace(0, len(stops) - 1, 256)
    return np.stack([np.interp(places, np.arange(len(stops)), stops[:, channel]) for channel in range(3)], axis=1)


_COLOURS = _ramp()
