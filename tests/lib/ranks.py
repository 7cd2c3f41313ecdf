"""Runs a script of this folder on two processes of this machine, as `torchrun` does."""

import os
import subprocess
import sys
from pathlib import Path


def run_on_two_ranks(script: str, *arguments: object) -> None:
    """Raise AssertionError with the end of its output if it fails."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name(script)), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
