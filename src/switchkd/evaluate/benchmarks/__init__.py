"""The ten benchmarks that models of this line are compared on, asked and scored through lmms-eval.

base.py: what a benchmark is → one file for each → data.py: their rows → adapter.py: lmms-eval's task and model → run.py, results.py.
export.py turns a user's questions into a benchmark's rows. Only adapter.py and the files that configure a task import lmms-eval, which
is an extra.
"""

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

#: In the order of the published tables.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (MME, MMBENCH_EN, MMBENCH_CN, VQAV2, GQA, SCIENCEQA, MMMU, TEXTVQA, VIZWIZ, POPE)
}

__all__ = ["BENCHMARKS", "Benchmark"]
