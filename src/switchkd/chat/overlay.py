"""Where models look, drawn over the picture: violet where there is little attention, yellow where there is much."""

import numpy as np
from jaxtyping import Float
from PIL import Image

from switchkd.chat.panel import AttentionMap

#: Length in pixels of the longer side of what is drawn.
SIDE = 448
#: From no attention to the most. They differ in lightness, so that they are told apart without seeing red or green.
COLOURS = ((13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33))
#: How much of the colour is laid over the picture: where there is no attention, and where there is the most.
OPACITY = (0.35, 0.75)


def relative(shown: AttentionMap) -> Float[np.ndarray, "rows columns"]:
    """Attention in multiples of what each visual token of the picture had if all had the same."""
    weights = shown.attention.float().numpy()
    multiples: Float[np.ndarray, "rows columns"] = weights / weights.mean()
    return multiples


def overlay(shown: AttentionMap, most: float) -> Image.Image:
    """The picture in grey under its attention in colour.

    `most` is what `relative` is at the end of the colours: the same number for all pictures that are compared.
    """
    width, height = (round(side * SIDE / max(shown.picture.size)) for side in shown.picture.size)
    grey = np.asarray(shown.picture.convert("L").resize((width, height)), dtype=np.float32)[..., None]
    share = Image.fromarray(relative(shown) / most).resize((width, height), Image.Resampling.BILINEAR)
    heat = np.asarray(share).clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colour = np.stack([np.interp(heat, stops, channel) for channel in zip(*COLOURS, strict=True)], axis=-1)
    opacity = np.interp(heat, (0, 1), OPACITY)[..., None]
    return Image.fromarray(((1 - opacity) * grey + opacity * colour).round().astype(np.uint8))
