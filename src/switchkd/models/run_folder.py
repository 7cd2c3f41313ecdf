"""The folder of a run stands for its student: wherever a model is named, either may be given."""

from pathlib import Path

#: What the folder of a run holds: its resolved recipe, and the finished student.
RECIPE = "recipe.yaml"
STUDENT = "student"


def model_folder(name: str | Path) -> str:
    """The folder of the student of a run; any other name as it is.

    Raises:
        ValueError: a run that has no student yet.
    """
    folder = Path(name)
    if not (folder / RECIPE).is_file() or (folder / "config.json").exists():
        return str(name)
    if not (folder / STUDENT).is_dir():
        checkpoints = sorted(folder.glob("*/checkpoint-*"), key=lambda path: path.stat().st_mtime)
        newest = f", or name its newest checkpoint, {checkpoints[-1]}" if checkpoints else ""
        raise ValueError(
            f"{name} is a run that has no student yet: finish it, switchkd train {folder / RECIPE}{newest}"
        )
    return str(folder / STUDENT)
