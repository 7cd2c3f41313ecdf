"""Counts where a step would make the host wait for a GPU: values that are asked for, and shapes that depend on values."""

import traceback
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators whose result, or its shape, the host must know before it goes on.
_OPERATORS = {
    "_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive",
    "unique_dim", "bincount",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """What waited inside a `with` block, as `operator at file:line` of the innermost Python that is not torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._methods = _Methods(self.found)

    def __enter__(self):
        self._methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._methods.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        masks = name in ("index", "index_put_", "index_put", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in _OPERATORS or masks or repeats:
            self.found.append(f"{name} at {_place()}")
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("tolist", "numpy", "cpu"):  # the others reach an operator
            self.found.append(f"{name} at {_place()}")
        return func(*args, **(kwargs or {}))


def _place() -> str:
    frames = [
        frame
        for frame in traceback.extract_stack()
        if "/torch/" not in frame.filename and "waits.py" not in frame.filename
    ]
    last = frames[-1]
    return f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno} {last.name}"
