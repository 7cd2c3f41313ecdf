"""Models from other places: TinyLLaVA checkpoints in and out, and students made of other models."""

from switchkd.convert.student import Start, init_student
from switchkd.convert.tinyllava import convert, export_tinyllava, import_tinyllava

__all__ = ["Start", "convert", "export_tinyllava", "import_tinyllava", "init_student"]
