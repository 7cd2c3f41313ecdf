"""Where the shipped weights lie: the teacher, and what students start from."""

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
            f"or make the assets with `python -m switchkd.world.pretrain --out {_ASSETS}`"
        )
    return directory


def recipe_path() -> Path:
    """The demo's recipe."""
    return Path(__file__).parent / "tiny.yaml"
