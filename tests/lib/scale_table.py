"""The table of docs/scale.md: what of each shipped pair fits where, and how long a step takes, from configs alone.

PYTHONPATH=tests/lib python -m scale_table [RECIPE …]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from published_configs import PUBLISHED
from recipe_table import pairs
from torch import nn

from switchkd.models.layers import repeated_layers
from switchkd.recipe.schema import Recipe, load_recipe
from switchkd.recipe.shipped_files import shipped
from switchkd.train.memory import Memory, _build, estimate
from switchkd.train.peak import published_tflops

#: Rows of a step.
ROWS = 128
#: The share of a card's published TFLOP/s that a step is taken to reach: 55 % of a bare product, and an H200's product was 790 of 989.
SHARE = 0.55 * 790 / 989
#: Changes of a recipe by the name that they have in the table, from none to what takes the least.
LOW = ["--train.per_device_train_batch_size", "1", "--train.gradient_checkpointing", "--train.switch_checkpointing"]
QUANTIZED = [*LOW, "--teacher.quantization", "4bit"]
WAYS = {"": [], "A": LOW, "B": QUANTIZED, "C": [*QUANTIZED, "--student.lora"]}
#: A pair that no recipe ships for, by the flags that make it of one that does.
LARGE = "qwen2.5-vl-7b-from-72b"
LARGE_FLAGS = ["--teacher.path", "Qwen/Qwen2.5-VL-72B-Instruct", "--student.path", "Qwen/Qwen2.5-VL-7B-Instruct"]


@dataclass(frozen=True)
class Machine:
    """So many devices of one kind."""

    devices: int
    #: A card of this size, by the name that torch has for it.
    card: str
    #: GiB that a run may take of one: the framework, the CUDA context and fragments need the rest.
    room: float


MACHINES = {
    "1 × 24 GB": Machine(1, "NVIDIA GeForce RTX 4090", 20.5),
    "1 × 80 GB": Machine(1, "NVIDIA H100 80GB HBM3", 72.0),
    "8 × 80 GB": Machine(8, "NVIDIA H100 80GB HBM3", 72.0),
    "2 nodes of them": Machine(16, "NVIDIA H100 80GB HBM3", 72.0),
}
HEAD = ("recipe", "TFLOP a row", *MACHINES)


@dataclass(frozen=True)
class Step:
    """What a micro-batch takes."""

    #: Of the stage that takes the most.
    memory: Memory
    #: Operations of a row in the last stage.
    flops: float
    #: Bytes of the weights that FSDP2 has whole during a step: all outside of layers, and two layers of each model.
    whole: int
    quantized: bool

    def peaks(self, machine: Machine) -> dict[str, int]:
        """Bytes of one device by the engine, the simplest first.

        DDP has a second copy of the gradients, in which they are summed. FSDP2 spreads weights and moments, which every process has loaded
        whole before; while micro-batches accumulate, gradients are not spread.
        """
        memory = self.memory
        if machine.devices == 1:
            return {"": memory.peak}
        known = {"DDP": memory.peak + memory.gradients}
        if self.quantized or memory.weights > machine.room * 2**30:  # refused, or not to be loaded: see docs/engines.md
            return known
        spread = memory.weights + memory.optimizer
        return known | {"FSDP2": memory.peak - spread + spread // machine.devices + self.whole}

    def seconds(self, machine: Machine) -> float:
        """Of a step of `ROWS` rows, computing alone."""
        peak = published_tflops(machine.card)
        assert peak is not None
        return self.flops * ROWS / machine.devices / 1e12 / (SHARE * peak)


@cache
def step(name: str, way: str) -> Step:
    """A shipped recipe, changed in this way."""
    file, flags = ("qwen2.5-vl-3b-from-7b", LARGE_FLAGS) if name == LARGE else (name, [])
    recipe = load_recipe(shipped()[file], [*flags, *WAYS[way]])
    assert recipe.teacher is not None
    configs = [PUBLISHED[model.path][0]() for model in (recipe.student, recipe.teacher)]
    # on all of these machines a step of 128 rows is several micro-batches: gradients are there from the start
    stages = [replace(stage, gradient_accumulation_steps=2) for stage in recipe.resolved_stages()]
    taken = [estimate(recipe, stage, *configs) for stage in stages]
    return Step(
        memory=max(taken, key=lambda memory: memory.peak),
        flops=taken[-1].flops / stages[-1].per_device_train_batch_size,
        whole=whole(recipe),
        quantized=recipe.teacher.quantization is not None,
    )


def whole(recipe: Recipe) -> int:
    """See `Step.whole`."""
    assert recipe.teacher is not None
    total = 0
    for chosen in (recipe.student, recipe.teacher):
        pathway = _build(PUBLISHED[chosen.path][0](), chosen)
        layers = repeated_layers(pathway.modules())
        inside = {id(p) for layer in layers for p in layer.parameters()}
        total += sum(size(p) for p in {id(p): p for p in pathway.model.parameters()}.values() if id(p) not in inside)
        total += 2 * max(sum(map(size, layer.parameters())) for layer in layers)  # one is used, the next one arrives
    return total


def size(parameter: nn.Parameter) -> int:
    """Bytes."""
    return parameter.numel() * parameter.element_size()


def cell(machine: Machine, of: Callable[[str], Step]) -> str:
    """The first way that fits the machine, with the peak in GiB and the seconds of a step; the least that is needed where none does."""
    least = float("inf")
    for way in WAYS:
        taken = of(way)
        for engine, peak in taken.peaks(machine).items():
            least = min(least, peak)
            if peak <= machine.room * 2**30:
                how = " ".join(filter(None, (engine, way))) or "as it is"
                return f"{how}: {peak / 2**30:.1f} GiB, {float(f'{taken.seconds(machine):.2g}'):,g} s"
    return f"no: {least / 2**30:.1f} GiB"


def line(name: str) -> str:
    """A line of the table."""
    cells = [cell(machine, lambda way: step(name, way)) for machine in MACHINES.values()]
    return "| " + " | ".join([f"`{name}`", f"{step(name, '').flops / 1e12:,.0f}", *cells]) + " |"


def main(names: Sequence[str]) -> None:
    print("| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|", sep="\n")
    for name in (*pairs(), LARGE):
        if not names or name in names:
            print(line(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
