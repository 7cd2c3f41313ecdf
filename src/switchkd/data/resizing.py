"""How many pixels an image processor makes of a picture, told before it is made: some make a narrow one a thousand times larger."""

from typing import Any


def resized_pixels(image_processor: Any, width: int, height: int) -> int:
    """The pixels after resizing to a shortest edge; otherwise, as the processor's own settings bound them, the picture's own."""
    size = getattr(image_processor, "size", None)
    settings: dict[str, Any] = dict(size) if size else {}
    shortest = settings.get("shortest_edge")
    # With a longest edge beside it, both bound the picture, in some families as its number of pixels.
    if not getattr(image_processor, "do_resize", False) or not shortest or settings.get("longest_edge"):
        return width * height
    return int(shortest) * max(int(shortest), int(shortest * max(width, height) / min(width, height)))
