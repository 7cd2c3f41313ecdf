"""How often autocast rounds a float32 weight to bf16: its cache holds while one micro-batch goes forward."""

from collections import Counter

import pytest
import torch
from steps import collate, make_trainer, rows
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts conversions of matrices by their name."""

    def __init__(self, parameters) -> None:
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in parameters if parameter.ndim > 1}
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket is torch.ops.aten._to_copy and args[0].data_ptr() in self.names:
            self.counted[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("checkpointing", "most"), [(False, 1), (True, 2)])
def test_a_weight_that_learns_is_rounded_once_for_each_time_it_goes_forward(tmp_path, checkpointing, most):
    """Once for student and switch together, and once more where checkpointing computes a layer again."""
    trainer = make_trainer(tmp_path)
    trainer.pair.float()
    trainer.pair.teacher.bfloat16()
    if checkpointing:
        trainer.pair.student.model.activation_checkpointing_enable({"use_reentrant": False})
    trainer.pair.train()
    casts = Casts(trainer.pair.named_parameters())
    with casts:
        with torch.autocast("cpu", torch.bfloat16):
            sums = trainer.step(collate(rows(4)))
        sums.loss.backward()
    student = {name: count for name, count in casts.counted.items() if name.startswith("student.")}
    assert len(student) > 30
    assert max(student.values()) == most
    teacher = casts.counted.keys() - student.keys()
    assert len(teacher) <= 1  # its head, which on a CPU the loss multiplies in float32
