"""Pictures without their detail: what is on them can be told no longer, where it is and in which colours can."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def coarse(pixels: Float[Tensor, "*n height width"], detail: float) -> Float[Tensor, "*n height width"]:
    """Shrink each picture to `detail` of its sides, by the mean of each cell, and enlarge it again, by the nearest cell.

    At least one cell is left: with detail 0 a picture is its mean colour. What is zero everywhere, as padding is, stays so.
    """
    height, width = pixels.shape[-2:]
    cells = max(round(height * detail), 1), max(round(width * detail), 1)
    flat = pixels.reshape(-1, 1, height, width)
    return F.interpolate(F.adaptive_avg_pool2d(flat, cells), size=(height, width), mode="nearest").view_as(pixels)
