"""Packed rows against rows of one length and random order: padding, and the time of the same samples.

python benchmarks/packing.py
python benchmarks/packing.py --samples 128 --pack 2048

Lengths are drawn like those of LLaVA's fine-tuning mix (`padding.llava_like`). The models are tiny and random, with 729 visual tokens; a
step is Switch-KD's, forward and backward, and every way goes through the same samples in this one process.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from common import RESULTS, machine, versions
from padding import llava_like, padding
from step import llava, sizes
from transformers import AutoModelForImageTextToText

from switchkd.batch import TEACHER, Aligned, Batch
from switchkd.data.packing import pack
from switchkd.data.reader import Encoded, join
from switchkd.methods import SwitchKD
from switchkd.models import Pathway
from switchkd.pairing import Pair
from switchkd.train.sampler import LengthGroupedSampler
from switchkd.train.step import DistillationStep

VOCABULARY, IMAGE, SIDE = 1_000, 729, 54
#: Answer tokens of a sample, of a question of as many.
ANSWER = 20


def make_step() -> DistillationStep:
    """A student and a teacher with images of 27 × 27 patches."""
    torch.manual_seed(0)
    vision = sizes(width=32, inner=64, layers=2, heads=2, image=SIDE, patch=2)
    pathways = []
    for width, layers in ((64, 2), (128, 3)):
        language = sizes(width=width, inner=4 * width, layers=layers, heads=4, kv=2)
        pathways.append(Pathway(AutoModelForImageTextToText.from_config(llava(language, vision, VOCABULARY))))
    student, teacher = pathways
    student.train_only(("vision", "projector", "language"))
    method = SwitchKD()
    return DistillationStep(Pair(student, teacher, needs=method.needs, vocabulary=VOCABULARY), method).train()


def sample(length: int) -> Encoded:
    """An image where there is room for it, words, and answers at the end."""
    has_image = length > IMAGE + 2 * ANSWER
    words = length - IMAGE if has_image else length
    tokens = [VOCABULARY - 1] * (length - words) + torch.randint(0, VOCABULARY - 1, (words,)).tolist()
    images = {"pixel_values": torch.randn(1, 3, SIDE, SIDE)} if has_image else {}
    return Encoded(tokens, list(range(length - min(ANSWER, length - 1), length)), [None] * length, length, {}, images)


def batch_of(samples: list[Encoded], packs: list[int] | None) -> Batch:
    inputs = join(samples, 0, packs)
    keys = tuple(f"{number}@" for number in range(len(samples)))
    return Batch(keys, inputs, {TEACHER: inputs}, {TEACHER: Aligned(None, None, inputs.targets)})


def seconds(step: DistillationStep, batches: list[Batch]) -> float:
    """CPU seconds of all batches, forward and backward."""
    begin = time.process_time()
    for batch in batches:
        step.zero_grad()
        step(batch).loss.backward()
    return time.process_time() - begin


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--samples", type=int, default=64)
    options.add_argument("--batch", type=int, default=8, help="rows of a padded batch; packed ones have as many tokens")
    options.add_argument("--pack", type=int, nargs="+", default=[2048, 4096], help="tokens of a packed row")
    options.add_argument("--repetitions", type=int, default=3, help="after a warm-up, taking turns")
    given = options.parse_args()
    torch.set_num_threads(1)
    every = llava_like()
    at_random = torch.randperm(len(every), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = at_random[: given.samples]
    lengths = [every[number] for number in chosen]
    samples = [sample(length) for length in lengths]
    grouped = list(LengthGroupedSampler(every, given.batch, seed=0, epoch=lambda: 0))
    few = list(LengthGroupedSampler(lengths, given.batch, seed=0, epoch=lambda: 0))

    def padded(order: list[int]) -> list[Batch]:
        starts = range(0, len(order), given.batch)
        return [batch_of([samples[n] for n in order[start : start + given.batch]], None) for start in starts]

    ways: dict[str, tuple[float, Callable[[], list[Batch]]]] = {
        "random order": (padding(every, at_random, given.batch), lambda: padded(list(range(len(samples))))),
        "group_by_length": (padding(every, grouped, given.batch), lambda: padded(few)),
    }
    for limit in given.pack:
        rows = pack(every, limit, seed=0)
        own = pack(lengths, limit, seed=0)
        at_once = max(round(given.batch * statistics.mean(lengths) / limit), 1)

        def packed(own: list[list[int]] = own, at_once: int = at_once) -> list[Batch]:
            parts = [own[start : start + at_once] for start in range(0, len(own), at_once)]
            return [batch_of([samples[n] for row in part for n in row], [len(row) for row in part]) for part in parts]

        ways[f"packing, {limit}"] = (1 - sum(every) / (len(rows) * limit), packed)
    step = make_step()
    batches = {name: make() for name, (_, make) in ways.items()}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(given.repetitions + 1):
        for name in ways:
            took = seconds(step, batches[name])
            if repetition:
                taken[name].append(took)
    base = statistics.median(taken["random order"])
    found = []
    print(f"{'rows':18} {'padding':>8} {'batches':>8} {'CPU s':>8} {'of random':>10}")
    for name, (share, _) in ways.items():
        median = statistics.median(taken[name])
        row = {"benchmark": "packing", "rows": name, "padding": share, "batches": len(batches[name])}
        row |= {"samples": given.samples, "cpu_seconds": taken[name], "of_random": median / base}
        found.append(row | {"machine": machine("cpu"), "versions": versions()})
        print(f"{name:18} {share:8.1%} {len(batches[name]):8} {median:8.2f} {median / base:10.2f}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "packing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    main()
