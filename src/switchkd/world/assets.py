"""Where the shipped weights lie: the teacher, and the vision tower that students start from."""

from pathlib import Path

_ASSETS = Path(__file__).parent / "assets"


def teacher_path() -> Path:
    """Directory of the shipped teacher: a Hugging Face model with its processor."""
    return _existing(_ASSETS / "teacher")


def tower_path() -> Path:
    """Directory of the shipped vision tower, pre-trained on shapes and colours alone."""
    return _existing(_ASSETS / "tower")


def _existing(directory: Path) -> Path:
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{directory} has no model.safetensors: reinstall switchkd, "
            f"or make the assets with `python -m switchkd.world.pretrain --out {_ASSETS}`"
        )
    return directory
