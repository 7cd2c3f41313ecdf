"""What of a recipe cannot go with a teacher on a device of its own."""

from collections.abc import Mapping

from switchkd.recipe.field_checks import require
from switchkd.recipe.model_sections import Teacher
from switchkd.recipe.training import Train


def check_devices_fit(teachers: Mapping[str, Teacher], train: Train) -> None:
    """Raise ValueError for fields that nobody has run with `device`.

    Args:
        teachers: of the recipe, by the names of their sections.
        train: of the recipe.
    """
    for section, teacher in teachers.items():
        if teacher.device is None:
            continue
        others = {
            f"{section}.quantization": teacher.quantization,
            f"{section}.attn_implementation": "flash_attention_2"
            if teacher.attn_implementation == "flash_attention_2"
            else None,
            "train.torch_compile": "true" if train.torch_compile else None,
            "train.kernels": train.kernels if train.kernels == "liger" else None,
        }
        for name, given in others.items():
            require(
                given is None,
                f"{section}.device is {teacher.device} and {name} is {given}, which nobody has run together: keep one of the two",
            )
