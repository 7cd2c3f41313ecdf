"""The processes of a run, one for each device: those that `torchrun` or `accelerate launch` starts, or this one alone."""

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """This process among those of the run, on the device that it uses; the first call makes them known to each other.

    Every part of a run asks here. accelerate joins processes without accelerators only where it is told that they mean the CPU: asked
    for its state without that, each of them is alone, and the main one.

    Raises:
        ValueError: where several processes were started and are not joined.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    started = int(os.environ.get("WORLD_SIZE") or 1)
    if "LOCAL_RANK" in os.environ and started != state.num_processes:
        raise ValueError(
            f"{started} processes were started for this run, and accelerate has joined {state.num_processes} on {state.device}: each would "
            "train by itself and write into one folder. Start one process, or set ACCELERATE_USE_CPU=true to train on CPUs"
        )
    return state


def sharded() -> bool:
    """Whether the launcher was told to spread weights, gradients and moments over the processes: FSDP, DeepSpeed."""
    return any(parse_flag_from_env(name) for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))
