"""The embedded default: a procedural visual world written as real files, and the tiny models that live in it."""

from .assets import teacher_path, tower_path
from .questions import KINDS
from .write import write

__all__ = ["KINDS", "teacher_path", "tower_path", "write"]
