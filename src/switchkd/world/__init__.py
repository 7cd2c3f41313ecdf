"""The embedded default: a procedural visual world written as real files, and the tiny models that live in it."""

from .assets import recipe_path, student_path, teacher_path
from .models import write_student
from .questions import KINDS
from .write import write

__all__ = ["KINDS", "recipe_path", "student_path", "teacher_path", "write", "write_student"]
