"""Where models look, drawn over the picture: violet where there is little attention, yellow where there is much."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from switchkd.chat.panel import AttentionMap

#: Length in pixels of the longer side of what is drawn.
SIDE = 448
#: Pixels between two pictures.
GAP = 8
#: From no attention to the most. They differ in lightness, so that they are told apart without seeing red or green.
COLOURS = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
#: How much of the colour is laid over the picture: where there is no attention, and where there is the most.
OPACITY = (0.35, 0.75)


def relative(maps: Sequence[AttentionMap]) -> list[Float[np.ndarray, "rows columns"]]:
    """Attention in multiples of what each visual token of the pictures had if all had the same."""
    weights = [shown.attention.float().numpy() for shown in maps]
    mean = np.concatenate([of_picture.ravel() for of_picture in weights]).mean()
    return [of_picture / mean for of_picture in weights]


def most(maps: Sequence[AttentionMap]) -> float:
    """The largest of these multiples."""
    return max(float(multiples.max()) for multiples in relative(maps))


def overlay(maps: Sequence[AttentionMap], end: float) -> Image.Image:
    """The pictures, side by side, in grey under their attention in colour.

    `end` is what `relative` is at the end of the colours: the same number for all pictures that are compared.
    """
    drawn = [_drawn(shown.picture, multiples / end) for shown, multiples in zip(maps, relative(maps), strict=True)]
    whole = Image.new(
        "RGB", (sum(one.width for one in drawn) + GAP * (len(drawn) - 1), max(one.height for one in drawn))
    )
    left = 0
    for one in drawn:
        whole.paste(one, (left, 0))
        left += one.width + GAP
    return whole


def _drawn(picture: Image.Image, shares: Float[np.ndarray, "rows columns"]) -> Image.Image:
    width, height = (round(side * SIDE / max(picture.size)) for side in picture.size)
    grey = np.asarray(picture.convert("L").resize((width, height)), dtype=np.float32)[..., None]
    heat = np.asarray(Image.fromarray(shares).resize((width, height), Image.Resampling.BILINEAR)).clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(heat, stops, channel) for channel in zip(*COLOURS, strict=True)], axis=-1)
    opacity = np.interp(heat, (0, 1), OPACITY)[..., None]
    return Image.fromarray(((1 - opacity) * grey + opacity * colour).round().astype(np.uint8))
