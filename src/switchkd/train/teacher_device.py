"""A teacher on a device of its own: what is there, and what several processes would do with it."""

import torch

from switchkd.processes import processes, sharded
from switchkd.recipe.schema import Recipe, Teacher


def device_of(teacher: Teacher) -> torch.device | None:
    """Where a recipe wants a teacher's weights; None: where the student's are."""
    return None if teacher.device is None else torch.device(teacher.device)


def check_devices(recipe: Recipe) -> None:
    """Refuse devices that are not there, and those that processes would have to share.

    Raises:
        ValueError: naming the field, and what there is.
    """
    count = torch.cuda.device_count()
    there = ", ".join(f"cuda:{number}" for number in range(count))
    for section, teacher in recipe.teacher_sections.items():
        device, started = device_of(teacher), processes().num_processes
        if device is None:
            continue
        field = f"{section}.device is {teacher.device}"
        if device.type == "cuda" and (device.index or 0) >= count:
            seen = f"{count} CUDA device{'s' * (count != 1)} here" + (f" ({there})" if count else "")
            raise ValueError(f"{field}, and torch sees {seen}: name one that is there, or cpu, or leave it out")
        if sharded():
            raise ValueError(
                f"{field}, and weights are spread over processes (FSDP, DeepSpeed), which nobody has run together: leave it out, and the "
                "teacher's weights are spread too"
            )
        if device.type == "cuda" and started > 1:
            raise ValueError(
                f"{field}, and {started} processes would each put a teacher of their own on that one card: leave it out, so that every "
                "process has its teacher on its own card, or start one process; with cpu every process keeps one in the memory of the host"
            )
