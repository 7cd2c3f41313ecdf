"""Models from other places: TinyLLaVA checkpoints in and out."""

from switchkd.convert.tinyllava import convert, export_tinyllava, import_tinyllava

__all__ = ["convert", "export_tinyllava", "import_tinyllava"]
