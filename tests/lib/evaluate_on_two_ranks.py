"""A model asked by two processes: `torchrun … evaluate_on_two_ranks.py MODEL DATA OUTPUT`.

Leaves what each rank has and how much it asked."""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist

os.environ["ACCELERATE_USE_CPU"] = "true"

from switchkd.evaluate import evaluate_model, evaluation
from switchkd.processes import processes

if __name__ == "__main__":
    model, data, output = map(Path, sys.argv[1:])
    rank, asked, plain = processes().process_index, [], evaluation.answers
    evaluation.answers = lambda *given, **how: asked.extend(given[2]) or plain(*given, **how)
    results = evaluate_model(model, data, batch_size=3, max_new_tokens=3, output=output / "results.json", share=True)
    told = [(one.id, one.got, one.truncated) for one in results.predictions]
    (output / f"rank-{rank}.json").write_text(json.dumps(told))
    (output / f"asked-{rank}").write_text(str(len(asked)))
    dist.barrier()
    dist.destroy_process_group()
