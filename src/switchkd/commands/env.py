"""`switchkd env`."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from switchkd.commands.verb import Verb, print_json
from switchkd.versions import versions

#: What every installation has, and what results depend on.
_NEEDED = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface-hub",
    "safetensors",
    "peft",
    "numpy",
    "pillow",
    "pyarrow",
)
#: What need not be there → what it is for.
_OPTIONAL = {
    "torchvision": "processors of some families (docs/families.md)",
    "bitsandbytes": "student.quantization, teacher.quantization, 8-bit optimizers: pip install 'switchkd[quantization]'",
    "liger-kernel": "train.kernels on a GPU: pip install 'switchkd[gpu]'",
    "triton": "the loss on a GPU: pip install 'switchkd[gpu]'",
    "flash-attn": "attn_implementation: flash_attention_2",
    "deepspeed": "ZeRO, through accelerate launch",
    "gradio": "switchkd chat --web: pip install 'switchkd[web]'",
    "lmms-eval": "switchkd evaluate --benchmarks (docs/benchmarks.md)",
    "wandb": "train.report_to: [wandb]",
    "sentencepiece": "tokenizers that are there as tokenizer.model alone",
}  # fmt: skip


@dataclass(frozen=True)
class Env(Verb):
    """Say what switchkd runs on: versions, GPUs, optional packages and what each is for. To be pasted into a report.

    Example: switchkd env
    """

    #: As JSON.
    json: bool = False

    def run(self, fields: Sequence[str]) -> int:
        """Print it."""
        found = environment()
        if self.json:
            print_json(found)
            return 0
        width = max(map(len, found))
        for name, value in found.items():
            print(f"{name.ljust(width)}  {value or f'not installed ({_OPTIONAL[name]})'}")
        return 0


def environment() -> dict[str, str | None]:
    """What there is → its version or size; None for an optional package that is not installed."""
    import psutil
    import torch

    known = versions(*_NEEDED, *_OPTIONAL)
    found: dict[str, str | None] = {name: known.get(name) for name in ("switchkd", "python")}
    found["platform"] = platform.platform()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    found["processor"] = (
        f"{cores} cores, {memory.total / 2**30:.1f} GiB of memory, {memory.available / 2**30:.1f} GiB of it free"
    )
    found |= {name: known.get(name, "not installed: install switchkd again") for name in _NEEDED}
    found["torch is built for"] = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    found["GPUs"] = "; ".join(_gpus()) or "none that torch can use"
    found["driver"] = _driver()
    found |= {name: known.get(name) for name in _OPTIONAL}
    if found["torchvision"] is not None and (reason := _why_not("torchvision")):
        found["torchvision"] = f"{found['torchvision']}, which cannot be imported: {reason}"
    return found


def _gpus() -> list[str]:
    import torch

    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        f"{number}: {one.name}, {one.total_memory / 2**30:.0f} GiB, compute capability {one.major}.{one.minor}"
        for number, one in enumerate(properties)
    ]


def _driver() -> str:
    """Of NVIDIA, as nvidia-smi says it."""
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi fails: {error}"
    return told[0] if told else "no GPU, says nvidia-smi"


def _why_not(module: str) -> str | None:
    """Why a module that is installed cannot be imported, as where it was built for another torch; None where it can."""
    try:
        import_module(module)
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        return " ".join(str(error).split())
    return None
