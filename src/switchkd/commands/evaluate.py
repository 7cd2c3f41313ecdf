"""`switchkd evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from switchkd.commands.presence import require_data, require_model, require_paths
from switchkd.commands.verb import Verb, escaped, fail, model_libraries, parse_columns, say, slug, warn


@dataclass(frozen=True)
class Evaluate(Verb):
    """Ask a model every question of a data set and score its answers, or ask it the published benchmarks through lmms-eval.

    Example: switchkd evaluate runs/demo/switch-kd/student runs/demo/data/test.json --output results.json

    Example: switchkd evaluate CHECKPOINT mine.jsonl --metric anls count=exact

    Example: switchkd evaluate CHECKPOINT --benchmarks all --data benchmarks

    Example: switchkd evaluate CHECKPOINT --benchmarks mme,pope,mmmu
    """

    #: A checkpoint directory, a run, or a name on the Hugging Face hub.
    model: Annotated[Positional[str], arg(metavar="MODEL")]
    #: Questions in any form and file of docs/data.md. Not with --benchmarks.
    questions: Annotated[Positional[Path | None], arg(metavar="DATA")] = None
    #: Names with commas: mme, mmbench_en, mmbench_cn, vqav2, gqa, scienceqa, mmmu, textvqa, vizwiz, pope, or `all` for these ten; ai2d.
    benchmarks: str | None = None
    #: A folder with NAME.parquet or NAME/*.parquet for each benchmark; by default they come from the Hugging Face hub.
    data: Path | None = None
    #: Where image paths of DATA start; by default its folder.
    image_root: Path | None = None
    #: Columns of DATA that have names of their own: question=q answer=a image=img.
    columns: tuple[str, ...] = ()
    #: Questions at a time.
    batch_size: int = 32
    #: Longer answers are cut, and counted; by default 64 for DATA, and what each benchmark says.
    max_new_tokens: int | None = None
    #: Of DATA: stop when of more than this share of the rows something cannot be asked; by default 0.01. Fewer are skipped and counted.
    max_bad_fraction: float | None = None
    #: Of DATA: exact, contains, anls, relaxed, vqa, choice, rouge or cider, for all or as KIND=METRIC; a row's `metric` goes first.
    metric: tuple[str, ...] = ()
    #: Of the model's weights; auto keeps the checkpoint's own. Of DATA.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: As cpu or cuda:1; by default the GPU if there is one. Of DATA.
    device: str | None = None
    #: The results JSON; the answers go into a file next to it; by default runs/evaluate/MODEL--DATA.json or MODEL--benchmarks.json.
    output: Path | None = None
    #: Print the results as JSON instead of the table.
    json: bool = False

    def run(self, fields: Sequence[str]) -> int:
        """Evaluate, write the results and print the table."""
        if self.benchmarks is None:
            if self.questions is None:
                return fail("evaluate needs DATA (questions of your own) or --benchmarks (all, or names)", 2)
            if self.data is not None:
                return fail("--data is the folder of --benchmarks; questions of your own come right behind MODEL", 2)
            return self._ask_questions(self.questions)
        if self.questions is not None:
            return fail(f"evaluate takes DATA ({self.questions}) or --benchmarks, not both; their folder is --data", 2)
        if self.image_root is not None:
            return fail("--image-root is for DATA; benchmarks hold their images inside", 2)
        if self.columns:
            return fail("--columns are those of DATA", 2)
        if self.metric or self.dtype != "auto" or self.device is not None:
            return fail("--metric, --dtype and --device are for DATA; benchmarks have metrics of their own", 2)
        if self.max_bad_fraction is not None:
            return fail("--max-bad-fraction is for DATA; the figures of benchmarks count every row", 2)
        return self._ask_benchmarks(self.benchmarks)

    def _output(self, what: str) -> Path:
        return self.output or Path("runs/evaluate", f"{slug(self.model)}--{what}.json")

    def _ask_questions(self, data: Path) -> int:
        from switchkd.results.metrics import parse_metrics

        columns, metrics = parse_columns(self.columns), parse_metrics(self.metric)
        require_data(data)
        require_model(self.model)
        with model_libraries():
            from switchkd.console import terminal
            from switchkd.evaluate import evaluate_model
            from switchkd.processes import processes
            from switchkd.report.results_table import results_table, wrong_answers

        output = self._output(slug(str(data.with_suffix(""))))
        given = {"max_new_tokens": self.max_new_tokens, "max_bad_fraction": self.max_bad_fraction}
        sizes: Any = {"batch_size": self.batch_size} | {k: v for k, v in given.items() if v is not None}
        results = evaluate_model(
            self.model,
            data,
            image_root=self.image_root,
            columns=columns,
            metrics=metrics,
            dtype=self.dtype,
            device=self.device,
            output=output,
            share=True,
            **sizes,
        )
        if not processes().is_main_process:
            return 0
        if self.json:
            print(escaped(output.read_text(encoding="utf-8")), end="")
        else:
            terminal(width=100).print(results_table(results))
        for line in wrong_answers(results):
            say(line)
        if results.bad_rows:
            warn(
                f"of {results.bad_rows} of {results.rows} rows something could not be asked: `skipped` in {output} says why"
            )
        _say_set_aside(results.generation_set_aside)
        say(f"results in {output}, answers in {output.with_suffix('.predictions.jsonl')}")
        return 0

    def _ask_benchmarks(self, names: str) -> int:
        from switchkd.evaluate.benchmarks import parse_names

        listed = parse_names(names)
        if self.data is not None:
            require_paths([self.data])
        require_model(self.model)
        with model_libraries():
            from switchkd.console import terminal
            from switchkd.evaluate.benchmarks.ask_benchmarks import evaluate_benchmarks
            from switchkd.processes import processes
            from switchkd.results.benchmark_results import answers_path, table

        output = self._output("benchmarks")
        sizes: Any = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        results = evaluate_benchmarks(self.model, listed, data=self.data, output=output, share=True, **sizes)
        if not processes().is_main_process:
            return 0
        if self.json:
            print(escaped(output.read_text(encoding="utf-8")), end="")
        else:
            terminal().print(table(results))
        _say_set_aside(results.generation_set_aside)
        say(f"results in {output}, answers in {answers_path(output)}")
        return 0


def _say_set_aside(settings: dict[str, Any]) -> None:
    if settings:
        say(f"decoding was plain greedy; the checkpoint's own {', '.join(settings)} did not apply")
