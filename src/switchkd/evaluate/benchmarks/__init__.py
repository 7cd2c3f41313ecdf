"""Public benchmarks, among them the ten that models of this line are compared on, asked and scored through lmms-eval.

benchmark.py: what a benchmark is → one file for each → benchmark_samples.py: their data → adapter.py: lmms-eval's task and model →
ask_benchmarks.py. Only adapter.py and the files that configure a task import lmms-eval, which is an extra.
"""

from switchkd.evaluate.benchmarks.ai2d import AI2D
from switchkd.evaluate.benchmarks.benchmark import Benchmark
from switchkd.evaluate.benchmarks.gqa import GQA
from switchkd.evaluate.benchmarks.mmbench import MMBENCH_CN, MMBENCH_EN
from switchkd.evaluate.benchmarks.mme import MME
from switchkd.evaluate.benchmarks.mmmu import MMMU
from switchkd.evaluate.benchmarks.pope import POPE
from switchkd.evaluate.benchmarks.scienceqa import SCIENCEQA
from switchkd.evaluate.benchmarks.textvqa import TEXTVQA
from switchkd.evaluate.benchmarks.vizwiz import VIZWIZ
from switchkd.evaluate.benchmarks.vqav2 import VQAV2
from switchkd.results.ten_way_mean import TEN

#: The ten of the average (results/ten_way_mean.py) in the order of the published tables, then the others.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        MME,
        MMBENCH_EN,
        MMBENCH_CN,
        VQAV2,
        GQA,
        SCIENCEQA,
        MMMU,
        TEXTVQA,
        VIZWIZ,
        POPE,
        AI2D,
    )
}

__all__ = ["BENCHMARKS", "Benchmark", "parse_names"]


def parse_names(names: str) -> list[str]:
    """The benchmarks of a list with commas, in which `all` are the ten of the average.

    Raises:
        ValueError: a name that is none of them, or there twice.
    """
    listed = [name for part in names.split(",") for name in (TEN if part.strip() == "all" else [part.strip()])]
    for name in listed:
        if name not in BENCHMARKS:
            raise ValueError(
                f"there is no benchmark {name!a}; there are {', '.join(BENCHMARKS)}, and `all` for the ten of the average"
            )
    if len(set(listed)) != len(listed):
        raise ValueError(f"a benchmark is named twice: {names}")
    return listed
