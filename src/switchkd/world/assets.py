"""Where the shipped weights lie: the teacher, and what students start from."""

import shutil
from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"


def teacher_path() -> Path:
    """Directory of the shipped teacher: a Hugging Face model with its processor."""
    return _existing(_ASSETS / "teacher")


def student_path() -> Path:
    """Directory of what students start from: a language model that learned in words, a projector trained on the teacher's tower, and that
    tower cut to its first and last layer afterwards."""
    return _existing(_ASSETS / "student")


def _existing(directory: Path) -> Path:
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{directory} has no model.safetensors: reinstall switchkd, "
            f"or make the assets in a checkout with `python -m examples.world_weights.pretrain --out {_ASSETS}`"
        )
    return directory


def recipe_path() -> Path:
    """The demo's recipe."""
    return Path(__file__).parents[1] / "recipes" / "tiny.yaml"


def write_student(directory: str | Path) -> None:
    """Save a student as it starts: trained, but for a vision encoder that has half of the teacher's layers."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    LlavaForConditionalGeneration.from_pretrained(student_path()).save_pretrained(directory)
    AutoProcessor.from_pretrained(student_path()).save_pretrained(directory)


def write_teacher(directory: str | Path) -> None:
    """Copy the shipped teacher, a model with its processor."""
    shutil.copytree(teacher_path(), directory, dirs_exist_ok=True)
