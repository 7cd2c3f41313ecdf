"""Commands that turn data into other data: `data`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from switchkd.commands.base import Verb, say


@dataclass(frozen=True)
class Data(Verb):
    """Turn questions of your own into the rows of a benchmark, to be asked with its prompt and scored by its rules.

    Example: switchkd data export-benchmark mmbench_en questions.json --output benchmarks

    Example: switchkd evaluate CHECKPOINT --benchmarks mmbench_en --data benchmarks
    """

    #: What to do.
    action: Annotated[Positional[Literal["export-benchmark"]], arg(metavar="export-benchmark")]
    #: mme, mmbench_en, mmbench_cn, vqav2, gqa, scienceqa, mmmu, textvqa, vizwiz or pope.
    benchmark: Annotated[Positional[str], arg(metavar="BENCHMARK")]
    #: LLaVA JSON, or messages and images as JSON, JSONL, Parquet or a saved data set, with the expected answers.
    questions: Annotated[Positional[Path], arg(metavar="DATA")]
    #: The folder for BENCHMARK.parquet.
    output: Path
    #: Where image paths of DATA start; by default its folder.
    image_root: Path | None = None

    def run(self, fields: Sequence[str]) -> int:
        """Write the rows."""
        from switchkd.evaluate.benchmarks.export import export_benchmark

        target, rows = export_benchmark(self.benchmark, self.questions, self.output, self.image_root)
        say(f"{rows} rows in {target}: switchkd evaluate MODEL --benchmarks {self.benchmark} --data {self.output}")
        return 0
