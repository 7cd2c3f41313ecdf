"""A recipe from start to end on two processes: `torchrun … distil_on_two_ranks.py RECIPE`."""

import sys

import torch.distributed as dist

from switchkd import distill
from switchkd.recipe.schema import load_recipe

if __name__ == "__main__":
    distill(load_recipe(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
