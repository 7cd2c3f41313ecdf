"""The embedded default: a procedural visual world written as real files, and the tiny models that live in it."""

from .assets import recipe_path, student_path, teacher_path
from .models import write_student, write_teacher
from .questions import KINDS
from .write import once, write

__all__ = ["KINDS", "once", "recipe_path", "student_path", "teacher_path", "write", "write_student", "write_teacher"]
