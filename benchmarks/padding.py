"""How much of a batch is padding, in random order and with `train.group_by_length`?

python benchmarks/padding.py
python benchmarks/padding.py --data llava_v1_5_mix665k.json --processor checkpoints/tinyllava-0.5b-init
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from common import RESULTS, versions
from transformers import AutoProcessor

from switchkd import world
from switchkd.data.collate import Collator
from switchkd.data.formats import load_rows
from switchkd.data.index import build_index
from switchkd.data.reader import Reader
from switchkd.train.sampler import LengthGroupedSampler

#: Rows per GPU and GPUs.
BATCHES = [(8, 1), (16, 1), (8, 8), (16, 8)]


def llava_like(rows: int = 20_000) -> list[int]:
    """Lengths with the spread of LLaVA's fine-tuning mix, drawn: an image of 729 tokens in 94 % of the rows, a prompt and a few turns of
    log-normal length beside it, long conversations without an image otherwise; cut at 2,048.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(median: float, spread: float) -> torch.Tensor:
        return median * (spread * torch.randn(rows, generator=generator)).exp()

    image = torch.rand(rows, generator=generator) < 0.94
    return torch.where(image, 729 + 60 + draw(150, 0.8), draw(600, 0.9)).clamp(20, 2048).int().tolist()


def encoded(data: str, processor: str, max_length: int) -> list[int]:
    """The lengths of real rows, as training sees them."""
    reader = Reader(AutoProcessor.from_pretrained(processor), max_length=max_length)
    return list(build_index(load_rows(data), Collator(reader)).rows["length"])


def of_the_world() -> list[int]:
    with tempfile.TemporaryDirectory() as folder:
        world.write(Path(folder), train=400, validation=0, test=0, seed=0)
        return encoded(f"{folder}/train.json", str(world.teacher_path()), 512)


def padding(lengths: list[int], order: list[int], batch_size: int) -> float:
    """The share of tokens that are padding."""
    batches = torch.tensor(lengths)[order[: len(order) // batch_size * batch_size]].unflatten(0, (-1, batch_size))
    return 1 - (batches.sum() / (batches.amax(dim=1).sum() * batch_size)).item()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="rows to measure, in any format that training reads")
    options.add_argument("--processor", help="the student's processor")
    options.add_argument("--max-length", type=int, default=2048)
    given = options.parse_args()
    if given.data:
        sets = {given.data: encoded(given.data, given.processor, given.max_length)}
    else:
        sets = {"LLaVA-like, drawn": llava_like(), "the world's": of_the_world()}
    found = []
    print(f"{'lengths':24} {'batch':>8} {'random':>8} {'grouped':>8}")
    for name, lengths in sets.items():
        at_random = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
        for rows, ranks in BATCHES:
            grouped = list(LengthGroupedSampler(lengths, rows * ranks, seed=0, epoch=lambda: 0))
            shares = {"random": padding(lengths, at_random, rows), "grouped": padding(lengths, grouped, rows)}
            found.append({"benchmark": "padding", "lengths": name, "rows": rows, "ranks": ranks, **shares})
            print(f"{name:24} {rows:3} × {ranks:2} {shares['random']:8.1%} {shares['grouped']:8.1%}")
    RESULTS.mkdir(exist_ok=True)
    text = "".join(json.dumps(row | {"versions": versions()}) + "\n" for row in found)
    (RESULTS / "padding.jsonl").write_text(text)


if __name__ == "__main__":
    main()
