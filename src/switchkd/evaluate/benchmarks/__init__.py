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

__all__ = ["BENCHMARKS", "Benchmark"]
