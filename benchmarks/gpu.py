"""Everything that is demanded of a GPU, in one process: the loss and its peers, the whole step, and a run from files to its student.

python benchmarks/gpu.py --check        # an H100 or H200; about six minutes, and 30 GB in the folder of temporary files
"""

import argparse
import json
import statistics
from collections.abc import Callable

import loss_from_hidden
import step
import torch
import trainer_run
from common import RESULTS, Demand, NotRunError, machine, report, versions
from loss_from_hidden import CASES, ours
from torch.profiler import ProfilerActivity, profile

from switchkd.losses import kernels

#: Answer tokens of the loss: 16 rows of 120.
TOKENS = 1920
#: A case of the loss: like those of `loss_from_hidden`, with as many tokens at a time as the loss chooses.
BY_ITSELF = "three-way: ours, chunk by itself"
TIMED = (
    "three-way: ours",
    BY_ITSELF,
    "three-way: TRL reverse kl twice",
    "three-way: bare products",
    "two-way: ours, chunk by itself",
    "two-way: Liger chunked",
    "two-way: TRL",
)


def cases(given: argparse.Namespace) -> dict[str, Callable[[argparse.Namespace], Callable[[], object]]]:
    """What is timed: by name, from sizes to a step."""

    def by_itself(x: loss_from_hidden.States) -> torch.Tensor:
        return ours(x, chunk=None, kernels=given.kernels)

    own = {
        BY_ITSELF: loss_from_hidden.three_way(by_itself),
        "two-way: ours, chunk by itself": loss_from_hidden.two_way(lambda: by_itself),
    }
    return {name: own.get(name) or CASES[name] for name in TIMED}


def time_loss(name: str, given: argparse.Namespace) -> dict:
    """Median time and peak memory above the inputs of one case; why it was not run, where it could not be."""
    sizes = argparse.Namespace(
        tokens=given.tokens, vocabulary=given.vocabulary, hidden=896, teacher_hidden=2048, device=given.device,
        kernels=given.kernels,
    )  # fmt: skip
    row: dict = {"benchmark": "gpu", "case": name, "sizes": vars(sizes)}
    try:
        run = cases(given)[name](sizes)
    except NotRunError as reason:
        return row | {"not_run": str(reason)}
    run()
    clock, seconds = step.Clock(given.device), []
    before = reset_memory(given.device)
    for _ in range(given.repetitions):
        with clock.span("loss"):
            run()
        seconds.append(clock.read_ms()["loss"])
    return row | {"median_ms": statistics.median(seconds), "peak_mib": (peak_memory(given.device) - before) / 2**20}


def reset_memory(device: str) -> int:
    """Bytes in use; the peak is counted from here."""
    if device == "cpu":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def peak_memory(device: str) -> int:
    return 0 if device == "cpu" else torch.cuda.max_memory_allocated()


def launches(given: argparse.Namespace) -> float | None:
    """Kernels that one chunk more makes the GPU run, three ways."""
    if given.device == "cpu":
        return None
    counts = []
    for tokens in (256, 512):
        sizes = argparse.Namespace(
            tokens=tokens, vocabulary=given.vocabulary, hidden=896, teacher_hidden=2048, device=given.device
        )
        run = loss_from_hidden.three_way(lambda x: ours(x, chunk=256, kernels=given.kernels))(sizes)
        run()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize()
        counts.append(sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events()))
    return counts[1] - counts[0]


def whole_step(given: argparse.Namespace, padded: int) -> dict:
    """The row of `step.py`, with what is chosen by itself."""
    shapes = "paper" if given.device == "cuda" else "tiny"
    sizes = argparse.Namespace(
        device=given.device, shapes=shapes, batch=given.batch, prompt=60, answer=120, repetitions=given.repetitions,
        kernels=given.kernels, layers=given.layers, padded=padded,
    )  # fmt: skip
    row = step.measure(sizes)
    step.show(row)
    if given.device == "cuda":
        torch.cuda.empty_cache()
    return row


def demands(rows: dict[str, dict], per_chunk: float | None, padded: dict, run: dict) -> list[Demand]:
    """Those of docs/performance.md."""

    def of(name: str, what: str) -> float | None:
        return rows[name].get(what)

    def times(peer: str, own: str, what: str) -> float | None:
        theirs, mine = of(peer, what), of(own, what)
        return theirs / mine if theirs and mine else None

    memory, twice = of(BY_ITSELF, "peak_mib"), "three-way: TRL reverse kl twice"
    return [
        Demand("launches of the loss per chunk, three ways", per_chunk, 40, at_least=False),
        Demand("loss in ms, 1,920 tokens, chunk chosen by itself", of(BY_ITSELF, "median_ms"), 15, at_least=False),
        Demand("its memory in GiB", None if memory is None else memory / 1024, 1.6, at_least=False),
        Demand("TRL twice, full logits / ours: time", times(twice, BY_ITSELF, "median_ms"), 2.3),
        Demand("TRL twice, full logits / ours: memory", times(twice, BY_ITSELF, "peak_mib"), 10),
        Demand(
            "Liger chunked / ours, two ways: time",
            times("two-way: Liger chunked", "two-way: ours, chunk by itself", "median_ms"),
            2,
        ),
        Demand("the step's share of 790 TFLOP/s, padded rows", padded["floor_ms"] / padded["step_ms"], 0.55),
        Demand("a step of switchkd train / that step: speed", padded["step_ms"] / run["step_ms"], 0.95),
        Demand("seconds from the last step to the student", run["finish_s"], 10, at_least=False),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: that it runs, in small")
    options.add_argument("--tokens", type=int, default=TOKENS)
    options.add_argument("--vocabulary", type=int, default=151_936)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--repetitions", type=int, default=20)
    options.add_argument("--kernels", choices=["auto", "torch", "triton"], default="auto", help="of the loss")
    options.add_argument("--layers", choices=["auto", "liger", "none"], default="auto", help="as train.kernels")
    options.add_argument("--check", action="store_true", help="exit 1 naming what falls short")
    given = options.parse_args()
    if given.check and given.device == "cpu":
        options.error("--check holds a GPU to its demands: leave out --device cpu")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device here: run this on a machine with a GPU, or try it in small with "
            "--device cpu --tokens 8 --vocabulary 500 --batch 1 --repetitions 1"
        )
    torch.manual_seed(0)
    print(json.dumps(machine(given.device) | versions()))
    print(f"kernels of the loss: {kernels.why_not(torch.device(given.device)) or 'Triton'}")
    rows = {}
    for name in cases(given):
        rows[name] = row = time_loss(name, given)
        shown = row.get("not_run") or f"{row['median_ms']:8.2f} ms {row['peak_mib']:8.0f} MiB"
        print(f"{name:36} {shown}", flush=True)
        if given.device == "cuda":
            torch.cuda.empty_cache()
    per_chunk = launches(given)
    steps = [whole_step(given, padded) for padded in (0, 110)]
    run = trainer_run.measure(given)
    print(
        f"switchkd train: {run['step_ms']:.0f} ms for a step, {run['finish_s']:.1f} s from the last one to the student"
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{given.device}.jsonl"
    about = {"machine": machine(given.device), "versions": versions(), "launches_per_chunk": per_chunk}
    path.write_text("".join(json.dumps(row | about) + "\n" for row in (*rows.values(), *steps, run)))
    print(f"rows: {path.relative_to(RESULTS.parent.parent)}")
    if given.device == "cuda":
        report(demands(rows, per_chunk, steps[1], run), given.check)


if __name__ == "__main__":
    main()
