"""Opens one output folder on every rank, then once more without resuming: `torchrun … open_output.py FOLDER`."""

import json
import sys
from pathlib import Path

import torch

from switchkd.methods import SFT
from switchkd.processes import processes
from switchkd.recipe.schema import Data, Recipe, Student, Train
from switchkd.train.output import open_output


def main(folder: Path) -> None:
    """What each rank sees goes into `FOLDER/rank-N.json`."""
    rank = processes().process_index
    recipe = Recipe(Student("student"), SFT(), Data("rows.json"), Train(str(folder / "run")))
    with open_output(recipe, resume=False) as output:
        said = ["opened"]
        processes().wait_for_everyone()
        (output / "1-train" / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        processes().wait_for_everyone()
    try:
        with open_output(recipe, resume=False):
            said.append("opened again")
    except ValueError as error:
        said.append(str(error))
    (folder / f"rank-{rank}.json").write_text(json.dumps(said))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
