"""The embedded default: a procedural visual world written as real files, and the tiny models that live in it."""

from switchkd.world.assets import recipe_path, student_path, teacher_path, write_student, write_teacher
from switchkd.world.question_kinds import KINDS
from switchkd.world.write import once, write

__all__ = ["KINDS", "once", "recipe_path", "student_path", "teacher_path", "write", "write_student", "write_teacher"]
