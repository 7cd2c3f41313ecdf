"""The benchmarks through lmms-eval, with an oracle in the model's place: perfect answers earn full marks, nonsense nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ranks import run_on_two_ranks
from run_files import write_model
from ten_rows import TYPED, perfect, write
from tiny import IMAGE_SIZE, tiny_processor
from tiny_models import tiny_llava

from switchkd.evaluate import batches
from switchkd.evaluate.benchmarks import BENCHMARKS, pope
from switchkd.evaluate.benchmarks import ask_benchmarks as run
from switchkd.evaluate.benchmarks.ask_benchmarks import evaluate_benchmarks
from switchkd.evaluate.generate import Answer
from switchkd.results.benchmark_results import BenchmarkResults
from switchkd.results.ten_way_mean import TEN, percent, ten_way_mean


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("benchmarks")
    for name in BENCHMARKS:
        write(path, name)
    return path


@pytest.fixture(scope="module")
def parts():
    processor = tiny_processor()
    return tiny_llava(vocabulary=len(processor.tokenizer), image_size=IMAGE_SIZE), processor


@pytest.fixture
def ask(folder, parts, monkeypatch):
    """All benchmarks, answered by a rule on the perfect answer."""
    model, processor = parts
    right = perfect(folder)

    def asked(rule, names=tuple(BENCHMARKS), **options):
        seen = []

        def answers(model, processor, rows, *, max_new_tokens):
            seen.extend(rows)
            return [Answer(rule(right[row["id"]]), False) for row in rows]

        monkeypatch.setattr(run, "answers", answers)
        return evaluate_benchmarks(model, names, data=folder, processor=processor, **options), seen

    return asked


@pytest.mark.parametrize("rule", [lambda right: right, lambda right: f"{right}."], ids=["perfect", "with a dot"])
def test_perfect_answers_earn_full_marks_on_all_of_them(ask, rule):
    results, _ = ask(rule)
    assert {name: result.percent for name, result in results.benchmarks.items()} == dict.fromkeys(BENCHMARKS, 100.0)
    assert results.average == 100
    assert (results.benchmarks["mme"].score, results.benchmarks["mme"].unit) == (2000, "points")
    assert {name: result.samples for name, result in results.benchmarks.items()} == {
        name: len(typed) for name, typed in TYPED.items()
    }


def test_nonsense_earns_nothing_but_chance_where_the_official_parser_guesses(ask):
    results, _ = ask(lambda right: "§§")
    scores = {name: result.percent for name, result in results.benchmarks.items()}
    assert scores.pop("mmmu") <= 50
    assert scores == dict.fromkeys(scores, 0.0)
    assert results.benchmarks["mmmu"].unparsable == 2
    assert results.benchmarks["pope"].unparsable == 6
    assert results.benchmarks["pope"].metrics["f1_official"] == pytest.approx(2 / 3)


@pytest.mark.long
def test_an_eleventh_benchmark_leaves_the_average_of_ten_as_it_was(ask):
    def wrong_in_ai2d(rows):
        return lambda right: next(rows)

    answers = [answer for name in BENCHMARKS for _, answer in TYPED[name]]
    spoiled = [answer if name != "ai2d" else "§§" for name in BENCHMARKS for _, answer in TYPED[name]]
    ten, _ = ask(lambda right: right, TEN)
    eleven, _ = ask(wrong_in_ai2d(iter(spoiled)))
    assert answers != spoiled
    assert set(BENCHMARKS) > set(TEN)
    assert eleven.benchmarks["ai2d"].percent == 0
    assert ten.average == eleven.average == 100
    nine, _ = ask(lambda right: right, [name for name in BENCHMARKS if name != "gqa"])
    assert nine.average is None


def test_answers_are_read_through_the_filter_of_the_task(ask):
    results, _ = ask(lambda right: f"{right}. as the arrow says", ["ai2d"])
    assert results.benchmarks["ai2d"].metrics == {"exact_match": 1.0}
    assert ask(lambda right: f"({right}) as the arrow says", ["ai2d"])[0].benchmarks["ai2d"].percent == 0


def test_figures_of_several_filters_are_told_apart(ask, monkeypatch):
    from switchkd.evaluate.benchmarks import adapter

    def with_two(benchmark):
        config = adapter.load_yaml_config(str(Path(adapter.lmms_eval.__file__).parent / "tasks" / benchmark.upstream))
        first = {"name": "as it is", "filter": [{"function": "take_first"}]}
        return config | {"filter_list": [first, *config["filter_list"]]}

    monkeypatch.setattr(adapter, "upstream_config", with_two)
    monkeypatch.setitem(BENCHMARKS, "ai2d", replace(BENCHMARKS["ai2d"], metric="exact_match,flexible-extract"))
    results, _ = ask(lambda right: f"{right}. as the arrow says", ["ai2d"])
    assert results.benchmarks["ai2d"].percent == 100
    assert results.benchmarks["ai2d"].metrics == {"exact_match,as it is": 0, "exact_match,flexible-extract": 1}


def test_mmmu_guesses_at_chance_and_always_the_same():
    from switchkd.evaluate.benchmarks.adapter import upstream_config

    process = BENCHMARKS["mmmu"].configure(upstream_config(BENCHMARKS["mmmu"]))["process_results"]
    docs = [
        {
            "id": f"validation_Math_{i}",
            "question_type": "multiple-choice",
            "options": "['w', 'x', 'y', 'z']",
            "answer": "A",
        }
        for i in range(400)
    ]
    guesses = [process(doc, ["§§"]) for doc in docs]
    assert 0.16 < sum(guess["mmmu_acc"]["parsed_pred"] == ["A"] for guess in guesses) / 400 < 0.34
    assert all(guess["unparsable"] for guess in guesses)
    assert [process(doc, ["§§"]) for doc in reversed(docs)] == guesses[::-1]
    assert not process(docs[0], ["(B)"])["unparsable"]


@pytest.mark.parametrize(
    ("said", "given", "official"),
    [
        ("Yes.", "yes", "yes"),
        ("Yes, there is a dog in the image.", "yes", "yes"),
        ("No, there is no dog.", "no", "no"),
        ("There is not. Yes.", "no", "no"),
        ("yes! no", "no", "no"),
        ("A dog.", None, "yes"),
        ("Note this", None, "yes"),
    ],
)
def test_the_rule_of_popes_own_script(said, given, official):
    assert pope.parse(said) == given
    item = pope.process({"category": "random", "answer": official}, [said])["f1_official"]
    rule = next(m for m in pope.configure({})["metric_list"] if m["metric"] == "accuracy_official")
    assert rule["aggregation"]([item]) == 1


def test_popes_figure_is_the_mean_over_its_categories():
    def items(category, *pairs):
        return [{"category": category, "expected": expected, "given": given} for expected, given in pairs]

    metrics = {metric["metric"]: metric["aggregation"] for metric in pope.configure({})["metric_list"]}
    # F1 by hand: 2·1/(2+1) with three rows, 2·1/(1+1) with one
    mixed = items("random", ("yes", "yes"), ("no", "yes"), ("no", "no")) + items("popular", ("yes", "yes"))
    assert metrics["f1"](mixed) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["accuracy"](mixed) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["f1"](items("random", ("no", "no"))) == 0


PUBLISHED = """
61.5 58.9 54.2 74.8 58.3 59.1 33.6 49.2 28.9 86.1 56.5
64.7 61.3 57.0 77.7 59.8 60.6 28.3 52.0 41.5 86.4 58.9
66.8 63.5 57.8 79.6 61.6 57.9 29.8 52.3 44.9 87.3 60.1
73.9 71.8 69.5 80.4 63.2 76.0 40.3 61.5 38.7 86.4 66.2
"""


@pytest.mark.parametrize("row", PUBLISHED.split("\n")[1:-1], ids=["TinyLLaVA-0.5B", "LLaVA-KD", "Switch-KD", "teacher"])
def test_the_published_rows_give_the_published_averages(row):
    *figures, mean = map(float, row.split())
    percents = dict(zip(TEN, figures, strict=True))
    percents["mme"] = percent(20 * figures[0], 2000)
    assert round(ten_way_mean(percents), 1) == mean
    assert ten_way_mean(percents | {"ai2d": 0.0}) == ten_way_mean(percents)
    assert ten_way_mean({name: value for name, value in percents.items() if name != "gqa"}) is None


def test_prompts_hold_what_each_benchmark_promises(ask):
    results, seen = ask(lambda right: right)
    prompts = {name: result.prompt for name, result in results.benchmarks.items()}
    assert all(prompt.count("<image>") == 1 for prompt in prompts.values())
    short, letter = (
        "\nAnswer the question using a single word or phrase.",
        "\nAnswer with the option's letter from the given choices directly.",
    )
    for name in ("mme", "pope", "vqav2", "gqa", "textvqa", "vizwiz"):
        assert prompts[name].endswith(short)
    for name in ("mmbench_en", "scienceqa", "mmmu", "ai2d"):
        assert prompts[name].endswith(letter)
    assert prompts["mmbench_cn"].endswith("\n请直接使用所提供的选项字母作为答案回答。")
    assert "\nReference OCR token: stop, SPEED\n" in prompts["textvqa"]
    assert "respond with 'Unanswerable'" in prompts["vizwiz"]
    assert "nan" not in prompts["mmbench_en"] + prompts["mmbench_cn"]
    # several images of a question stand where it names them
    (two,) = [row for row in seen if row["messages"][0]["content"][0]["text"] == "Compare "]
    compare = [part["text"] or "IMAGE" for part in two["messages"][0]["content"]]
    assert compare[:5] == ["Compare ", "IMAGE", " with ", "IMAGE", ". Which follows?\nA. "]
    row, _ = TYPED["mmmu"][1]
    assert two["images"] == [row[name] for name in ("image_2", "image_1", "image_3", "image_1")]


def test_an_answer_that_is_wrong_in_one_rotation_counts_for_nothing(ask, folder):
    wrong = iter([False, True] + [False] * 10)
    results, _ = ask(lambda right: "E" if next(wrong) else right, ["mmbench_en"])
    assert results.benchmarks["mmbench_en"].percent == 50


def test_what_the_results_say(ask, tmp_path, parts):
    results, _ = ask(lambda right: right, ["scienceqa", "pope"], batch_size=4, output=tmp_path / "out" / "b.json")
    written = json.loads((tmp_path / "out" / "b.json").read_text())
    assert (written["average"], written["complete"]) == (None, False)
    assert written["versions"]["lmms-eval"]
    assert written["image_backend"].endswith("(pil)")
    assert list(written["benchmarks"]) == ["scienceqa", "pope"]
    science = written["benchmarks"]["scienceqa"]
    assert (science["score"], science["unit"], science["samples"], science["published_samples"]) == (
        100,
        "percent",
        2,
        2017,
    )
    assert (science["truncated"], science["unparsable"]) == (0, None)
    assert written["benchmarks"]["pope"]["metrics"]["yes_ratio"] == 0.5
    lines = [json.loads(line) for line in (tmp_path / "out" / "b.answers.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert lines[0]["benchmark"] == "scienceqa"
    assert lines[0]["row"].endswith("scienceqa.parquet, row 0")
    assert lines[0]["answer"] == "B"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.answers.jsonl", "b.json"]
    assert BenchmarkResults.load(tmp_path / "out" / "b.json") == results
    (tmp_path / "out" / "b.answers.jsonl").unlink()
    assert BenchmarkResults.load(tmp_path / "out" / "b.json").given == ()
    again, _ = ask(lambda right: "A", ["pope"])
    assert again.benchmarks["pope"].data_fingerprint == results.benchmarks["pope"].data_fingerprint


def test_two_processes_ask_each_batch_once_and_have_the_results_of_one(ask, monkeypatch, tmp_path):
    alone, _ = ask(lambda right: right, ["scienceqa", "pope"], batch_size=3)
    state = SimpleNamespace(process_index=0, num_processes=2, is_main_process=True)

    def in_every_process(work):
        made = []
        for state.process_index in (1, 0):
            made.insert(0, work())
        return made

    for module in (batches, run):
        monkeypatch.setattr(module, "processes", lambda: state)
    monkeypatch.setattr(batches, "in_every_process", in_every_process)
    monkeypatch.setattr(run, "in_every_process", lambda work: [work()] * 2)  # scored by both
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    shared, seen = ask(lambda right: right, ["scienceqa", "pope"], batch_size=3, share=True, output=tmp_path / "b.json")
    assert len(seen) == len({row["id"] for row in seen}) == 8
    assert shared.given == alone.given
    assert {name: replace(result, seconds=0) for name, result in shared.benchmarks.items()} == {
        name: replace(result, seconds=0) for name, result in alone.benchmarks.items()
    }
    assert (os.environ["WORLD_SIZE"], os.environ["RANK"]) == ("2", "0")
    state.is_main_process = False
    ask(lambda right: right, ["pope"], share=True, output=tmp_path / "other.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.answers.jsonl", "b.json"]


@pytest.mark.slow
def test_two_ranks_have_the_results_of_one_process(folder, tmp_path):
    write_model(tmp_path / "student", seed=2)
    names = ["scienceqa", "pope", "mme"]
    run_on_two_ranks("benchmarks_on_two_ranks.py", tmp_path / "student", folder, tmp_path / "out", *names)
    alone = evaluate_benchmarks(tmp_path / "student", names, data=folder, batch_size=2, max_new_tokens=3)
    shared = BenchmarkResults.load(tmp_path / "out" / "results.json")
    assert shared.given == alone.given
    for name in names:
        assert replace(shared.benchmarks[name], seconds=0) == replace(alone.benchmarks[name], seconds=0)
    asked = [int((tmp_path / "out" / f"asked-{rank}").read_text()) for rank in (0, 1)]
    assert sum(asked) == len(alone.given)
    assert min(asked) > 0
    assert [(tmp_path / "out" / f"given-{rank}").read_text() for rank in (0, 1)] == [repr(alone.given)] * 2
