"""How every benchmark here measures: one process per case, CPU-seconds on one thread or CUDA events, peak memory above the inputs."""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from switchkd.batch import TEACHER, Aligned, Batch, Inputs

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "trl", "liger-kernel", "ms-swift")

#: A case makes its inputs and returns the step to be measured: loss and gradients, nothing kept.
Case = Callable[[argparse.Namespace], Callable[[], object]]


class NotRunError(Exception):
    """Why a case cannot be measured here: a row of its own in the table."""


@dataclass(frozen=True)
class Demand:
    """A number that must reach a bound: at least, or at most."""

    what: str
    measured: float | None
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--repetitions", type=int, help="after one warm-up; default 3 on a CPU, 20 on a GPU")
    options.add_argument("--check", action="store_true", help="exit 1 naming what falls short of the demands")
    options.add_argument("--case", help=argparse.SUPPRESS)  # how a process learns which case is its own
    return options


def run(
    file: str, cases: dict[str, Case], runs: list[tuple[str, dict[str, object]]], options: argparse.Namespace
) -> list[dict]:
    """Measure each (case, options) in a process of its own; print a table, write the rows, and return them.

    In such a process (`--case` given) measure that one case instead, print its row and exit.
    """
    if options.case:
        print(json.dumps(_measure(cases[options.case], options)))
        sys.exit(0)
    rows = []
    print(f"{'case':32} {'tokens':>7} {'vocabulary':>10} {'median':>10} {'peak':>10}")
    for case, changed in runs:
        given = vars(options) | changed | {"case": case}
        flags = [
            f"--{key.replace('_', '-')}={value}"
            for key, value in given.items()
            if value is not None and not isinstance(value, bool)
        ]
        process = subprocess.run(
            [sys.executable, file, *flags],
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"},
            check=False,
        )
        if process.returncode:
            raise SystemExit(f"{case} failed:\n{process.stderr}")
        row = {"benchmark": Path(file).stem, "case": case} | json.loads(process.stdout.splitlines()[-1])
        rows.append(row)
        _print(row)
    RESULTS.mkdir(exist_ok=True)
    kernels = "" if vars(options).get("kernels", "auto") == "auto" else f"-{options.kernels}"
    path = RESULTS / f"{Path(file).stem}-{options.device}{kernels}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"rows: {path.relative_to(RESULTS.parent.parent)}")
    return rows


def _print(row: dict) -> None:
    if "not_run" in row:
        print(f"{row['case']:32} not run: {row['not_run']}")
        return
    seconds, shown = row["median_seconds"], "-"
    if seconds is not None:
        shown = f"{1e3 * seconds:7.2f} ms" if row["sizes"]["device"] == "cuda" else f"{seconds:8.2f} s"
    print(
        f"{row['case']:32} {row['sizes']['tokens']:7} {row['sizes']['vocabulary']:10} {shown:>10} {row['peak_mib']:6.0f} MiB",
        flush=True,
    )


def _measure(case: Case, options: argparse.Namespace) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {key: value for key, value in vars(options).items() if key not in ("case", "check", "repetitions")}
    row: dict = {"sizes": sizes, "machine": machine(options.device), "versions": versions()}
    try:
        # What libraries load and keep at their first step is not memory of the loss.
        case(argparse.Namespace(**vars(options) | {"tokens": min(options.tokens, 8)}))()
        step = case(options)
    except NotRunError as reason:
        return row | {"not_run": str(reason)}
    repetitions = options.repetitions if options.repetitions is not None else (20 if options.device == "cuda" else 3)
    peak_mib = _peak_mib(step, options.device)  # and warm-up
    seconds = [_seconds(step, options.device) for _ in range(repetitions)]
    return row | {
        "unit": "CUDA seconds" if options.device == "cuda" else "CPU seconds on one thread",
        "seconds": seconds,
        "median_seconds": statistics.median(seconds) if seconds else None,
        "peak_mib": peak_mib,
    }


def _seconds(step: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _peak_mib(step: Callable[[], object], device: str) -> float:
    """Peak memory of one step above what its inputs hold."""
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # What glibc keeps of freed inputs would hide as much of the step's own memory.
    ctypes.CDLL(None).malloc_trim(0)
    before = kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to the memory held now
    step()
    return (kib("VmHWM") - before) / 2**10


def kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory on a CPU is measured on Linux only")


def machine(device: str) -> dict[str, object]:
    """What the numbers depend on, and nothing that names the machine's owner."""
    found: dict[str, object] = {
        "system": platform.system(),
        "cores": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            found["cpu"] = line.split(":", 1)[1].strip()
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Python and the packages that are compared."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def batch_of(tokens: torch.Tensor, answers: int, pixels: torch.Tensor, lengths: torch.Tensor | None = None) -> Batch:
    """Samples, each with as many answers at its end, read alike by student and teacher; of one length, or padded behind their lengths."""
    rows, width = tokens.shape
    lengths = torch.full((rows,), width, device=tokens.device) if lengths is None else lengths
    starts = torch.arange(rows, device=tokens.device) * width + lengths - answers
    places = (starts[:, None] + torch.arange(answers, device=tokens.device)).flatten()
    inputs = Inputs(
        tokens=tokens,
        lengths=lengths,
        predicts=places - 1,
        targets=tokens.flatten()[places],
        sample=places // width,
        media={"image": {"pixel_values": pixels}},
        types={},
    )
    aligned = Aligned(None, None, inputs.targets)
    return Batch(tuple(f"{row}@" for row in range(rows)), inputs, {TEACHER: inputs}, {TEACHER: aligned})


def value(rows: list[dict], case: str, what: str, tokens: int) -> float | None:
    """`median_seconds` or `peak_mib` of a case; None if it was not run."""
    for row in rows:
        if row["case"] == case and row["sizes"]["tokens"] == tokens:
            return row.get(what)
    raise LookupError(f"no row for {case} at {tokens} tokens")


def ratio(rows: list[dict], case: str, ours: str, what: str, tokens: int) -> float | None:
    """How many times more a case costs than ours."""
    theirs = value(rows, case, what, tokens)
    base = value(rows, ours, what, tokens)
    return theirs / base if theirs and base else None


def report(demands: list[Demand], check: bool) -> None:
    """Print demands beside what was measured; with `check`, exit 1 naming what falls short."""
    print(f"\n{'demand':62} {'bound':>9} {'measured':>9}")
    for demand in demands:
        measured = "not run" if demand.measured is None else f"{demand.measured:.3g}"
        bound = f"{'≥' if demand.at_least else '≤'} {demand.bound:g}"
        print(f"{demand.what:62} {bound:>9} {measured:>9}  {'' if demand.met else 'falls short'}")
    short = [demand.what for demand in demands if not demand.met]
    if check and short:
        raise SystemExit("falls short: " + "; ".join(short))
