"""Scenes become small RGB pictures: every thing jittered inside its cell, on a noisy dark background."""

import math
from functools import cache
from random import Random

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw

from switchkd.world.scenes import GRID, Difficulty, Scene

Picture = UInt8[np.ndarray, "48 48 3"]
#: Side of a picture and of one cell of the grid, in pixels.
IMAGE_SIZE = 48
CELL = IMAGE_SIZE // GRID
HEIGHT = {"small": 8, "large": 13}
RGB = {
    "red": (220, 50, 50),
    "green": (50, 190, 70),
    "blue": (60, 90, 235),
    "yellow": (230, 210, 50),
    "purple": (170, 70, 200),
    "white": (225, 225, 225),
}
#: Standard deviation of the pixel noise and largest relative change of a thing's brightness.
NOISE: dict[Difficulty, tuple[float, float]] = {"easy": (4.0, 0.05), "medium": (10.0, 0.15), "hard": (20.0, 0.25)}

# Five columns by seven rows, one string per digit.
_GLYPHS = {
    "0": "01110 10001 10001 10001 10001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "00110 01000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00010 01100",
}
_SCALE = 8  # shapes are drawn this much larger, then reduced, so that edges are smooth


def _star(side: float) -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = side / 2 if corner % 2 == 0 else side / 5
        angle = math.pi * (corner / 5 - 0.5)
        points.append((side / 2 + radius * math.cos(angle), side / 2 + radius * math.sin(angle)))
    return points


@cache
def mask(form: str, size: str) -> Float32[np.ndarray, "height width"]:
    """Coverage of a form in 0..1, [height, width]; shapes are square, digits narrower."""
    height = HEIGHT[size]
    if form in _GLYPHS:
        bits = np.array([[int(bit) for bit in row] for row in _GLYPHS[form].split()], dtype=np.uint8) * 255
        width = round(height * 5 / 7)
        image = Image.fromarray(bits).resize((width * _SCALE, height * _SCALE), Image.Resampling.NEAREST)
        return np.asarray(image.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / 255
    side = height * _SCALE
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    end = side - 1
    if form == "circle":
        pen.ellipse((0, 0, end, end), fill=255)
    elif form == "square":
        pen.rectangle((0, 0, end, end), fill=255)
    elif form == "triangle":
        pen.polygon([(side / 2, 0), (end, end), (0, end)], fill=255)
    elif form == "cross":
        pen.rectangle((side * 0.35, 0, side * 0.65, end), fill=255)
        pen.rectangle((0, side * 0.35, end, side * 0.65), fill=255)
    elif form == "star":
        pen.polygon(_star(side), fill=255)
    elif form == "ring":
        pen.ellipse((0, 0, end, end), fill=255)
        pen.ellipse((side * 0.27, side * 0.27, side * 0.73, side * 0.73), fill=0)
    else:
        raise ValueError(f"no drawing for the form {form!r}")
    return np.asarray(image.resize((height, height), Image.Resampling.BOX), dtype=np.float32) / 255


def draw(scene: Scene, rng: Random, difficulty: Difficulty) -> Picture:
    """Picture of a scene, uint8 [48, 48, 3]. The same scene and random state give the same pixels."""
    noise, brightness = NOISE[difficulty]
    canvas = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), [rng.uniform(15, 60) for _ in range(3)], dtype=np.float32)
    for thing in scene.things:
        cover = mask(thing.form, thing.size)
        height, width = cover.shape
        top = thing.row * CELL + rng.randint(1, CELL - height - 1)
        left = thing.column * CELL + rng.randint(1, CELL - width - 1)
        colour = np.array(RGB[thing.colour], dtype=np.float32) * rng.uniform(1 - brightness, 1 + brightness)
        patch = canvas[top : top + height, left : left + width]
        patch += cover[..., None] * (colour - patch)
    canvas += np.random.Generator(np.random.PCG64(rng.getrandbits(64))).normal(0, noise, canvas.shape)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
