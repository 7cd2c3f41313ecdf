"""Fill a teacher's cache on two processes, one row in a shard: `torchrun … cache_on_two_ranks.py RECIPE FOLDER`."""

import sys
from pathlib import Path

import torch.distributed as dist

from switchkd.data import store_shards
from switchkd.processes import processes
from switchkd.recipe.schema import load_recipe
from switchkd.train import teacher_cache

if __name__ == "__main__":
    store_shards._SHARD_ROWS = 1
    plain = teacher_cache.write_shard

    def noting(folder, shard, answers):
        with (Path(sys.argv[2]) / f"rank-{processes().process_index}").open("a") as file:
            file.write(f"{shard.name}\n")
        plain(folder, shard, answers)

    teacher_cache.write_shard = noting
    teacher_cache.make_caches(load_recipe(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
