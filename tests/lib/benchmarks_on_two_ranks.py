"""A model asked benchmarks by two processes: `torchrun … benchmarks_on_two_ranks.py MODEL DATA OUTPUT NAMES…`.

Leaves what each rank has and how much it asked."""

import os
import sys
from pathlib import Path

import torch.distributed as dist

os.environ["ACCELERATE_USE_CPU"] = "true"

from switchkd.evaluate.benchmarks import ask_benchmarks
from switchkd.processes import processes

if __name__ == "__main__":
    model, data, output = map(Path, sys.argv[1:4])
    rank, asked, plain = processes().process_index, [], ask_benchmarks.answers
    ask_benchmarks.answers = lambda *given, **how: asked.extend(given[2]) or plain(*given, **how)
    results = ask_benchmarks.evaluate_benchmarks(
        model, sys.argv[4:], data=data, output=output / "results.json", batch_size=2, max_new_tokens=3, share=True
    )
    (output / f"given-{rank}").write_text(repr(results.given))
    (output / f"asked-{rank}").write_text(str(len(asked)))
    dist.barrier()
    dist.destroy_process_group()
