"""Held-out rows while it trains: what is measured, which checkpoint is the best, and when a stage ends early."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from cases import open_tiny
from ranks import run_on_two_ranks
from steps import collate, make_trainer, read_metrics, rows, train
from tiny import tiny_processor
from tiny_models import tiny_llava
from transformers import AutoModelForImageTextToText, EarlyStoppingCallback, TrainerCallback, TrainerState

from switchkd.batch import TEACHER
from switchkd.data.errors import DataError
from switchkd.doctor.check_held_out import held_out as held_out_check
from switchkd.doctor.samples import Examined
from switchkd.evaluate.generate import Answer
from switchkd.evaluate.questions import Question, text_of
from switchkd.losses import cross_entropy, dbild
from switchkd.methods import SFT
from switchkd.recipe.schema import Data, WeightedData, build_recipe
from switchkd.train import checkpoint
from switchkd.train.best import stopped_early
from switchkd.train.evaluating_trainer import EvaluatingTrainer
from switchkd.train.held_out import HeldOut, count_shared
from switchkd.train.run import train_stage
from switchkd.train.stage import index_held_out

LOOKING = {"eval_strategy": "steps", "eval_steps": 1}


def evaluations(output):
    """What was logged of held-out rows, but not how fast."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    speed = ("_runtime", "_per_second", "epoch")
    return [{n: v for n, v in line.items() if not n.endswith(speed)} for line in lines if "eval_loss" in line]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "metrics.jsonl")


@pytest.mark.parametrize("size", [2, 7])
def test_terms_are_means_over_all_answer_tokens_of_the_held_out_rows(tmp_path, size):
    trainer = make_trainer(tmp_path, held_out=HeldOut(rows(7), ()), per_device_eval_batch_size=size, **LOOKING)
    measured = trainer.evaluate()
    batch = collate(rows(7))
    with torch.no_grad():
        logits = trainer.pair.eval()(batch).logits()
    compared = logits.compared[TEACHER]
    expected = {
        "ce": cross_entropy(logits.student, batch.student.targets).mean(),
        "align": dbild(compared.student, compared.teacher, window=32).mean(),
        "switch": dbild(compared.switch, compared.teacher, window=32).mean(),
    }
    for name, value in expected.items():
        assert measured[f"eval_{name}"] == pytest.approx(value.item(), abs=1e-9)
    assert measured["eval_loss"] == pytest.approx(sum(expected.values()).item(), abs=1e-9)
    assert measured["eval_answer_tokens"] == len(batch.student.targets)
    assert all(parameter.grad is None for parameter in trainer.step.parameters())


def test_training_goes_on_as_if_nobody_had_looked(tmp_path):
    random = []
    for name, looking in (("without", {}), ("with", {"held_out": HeldOut(rows(3), ()), **LOOKING})):
        torch.manual_seed(0)
        make_trainer(tmp_path / name, steps=4, method=SFT(), **looking).train()
        random.append(torch.rand(3))
    assert [line["loss"] for line in read_metrics(tmp_path / "with")] == [
        line["loss"] for line in read_metrics(tmp_path / "without")
    ]
    assert len(read_metrics(tmp_path / "with")) == 4
    assert torch.equal(*random)
    assert [line["step"] for line in evaluations(tmp_path / "with")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(tmp_path):
    """Seven rows: the last batch of a rank is empty."""
    train(tmp_path / "one", 4, 1, "held_out")
    run_on_two_ranks("steps.py", tmp_path / "two", 2, 1, "held_out")
    one, two = evaluations(tmp_path / "one"), evaluations(tmp_path / "two")
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_what_fills_up_the_batch_of_a_rank_is_not_measured(tmp_path):
    trainer = make_trainer(tmp_path, held_out=HeldOut(rows(4), ()), **LOOKING)
    trainer.prediction_step(trainer.step, collate(rows(2)), True)
    before = {name: total.clone() for name, total in trainer._held_out_sums.items()}
    trainer.prediction_step(trainer.step, collate(rows(1)).without_answers(), True)
    assert trainer._held_out_sums["ce"].tolist() == before["ce"].tolist()


@pytest.mark.parametrize("method", [SFT(), None])
def test_a_held_out_loss_that_is_not_finite_names_the_rows(tmp_path, method):
    bad = rows(3)
    bad[1] = {**bad[1], "pixels": bad[1]["pixels"] * float("nan")}
    held_out = HeldOut(bad, ())
    trainer = make_trainer(tmp_path, method=method, held_out=held_out, per_device_eval_batch_size=1, **LOOKING)
    with pytest.raises((FloatingPointError, ValueError), match=r"step 0, held-out samples 'row-1': .* (not|be) finite"):
        trainer.evaluate()


@pytest.fixture
def losses(monkeypatch):
    """What the held-out loss is said to be, evaluation after evaluation."""
    said = []
    measure = EvaluatingTrainer.evaluation_loop

    def say(self, *args, **kwargs):
        output = measure(self, *args, **kwargs)
        return output._replace(metrics=output.metrics | {"eval_loss": said[self.state.global_step - 1]})

    monkeypatch.setattr(EvaluatingTrainer, "evaluation_loop", say)
    return said


class Killed(TrainerCallback):
    """Ends the run after a step, before anything is measured or saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


def weights(folder):
    """Of a checkpoint, by the names that they have in memory."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").state_dict()


def same(student, folder):
    own = student.model.state_dict()
    return all(torch.equal(own[name], value) for name, value in weights(folder).items())


def looking(folder, steps, patience=None, **more):
    """A trainer that looks at held-out rows after every step, and saves a checkpoint at its end alone."""
    settings = {
        "save_strategy": "steps", "save_steps": 100, "metric_for_best_model": "loss", "greater_is_better": False,
        "restore_callback_states_from_checkpoint": True, "optim": "adamw_torch", "learning_rate": 1e-3,
    }  # fmt: skip
    held_out = HeldOut(rows(2), ())
    trainer = make_trainer(folder, method=SFT(), steps=steps, held_out=held_out, **LOOKING, **settings | more)
    if patience:
        trainer.add_callback(EarlyStoppingCallback(patience))
    return trainer


@pytest.mark.parametrize("limit", [1, 2])
def test_the_best_checkpoint_stays_beside_the_last(tmp_path, losses, limit):
    losses += [5, 3, 4, 4.5, 6]
    trainer = looking(tmp_path, 5, save_steps=1, save_total_limit=limit)
    trainer.train()
    last = ["checkpoint-5"] if limit == 1 else ["checkpoint-4", "checkpoint-5"]
    assert names(tmp_path) == ["best", "checkpoint-2", *last]
    assert (tmp_path / "best").resolve() == tmp_path / "checkpoint-2"
    state = TrainerState.load_from_json(str(tmp_path / "checkpoint-5" / "trainer_state.json"))
    assert (state.best_global_step, state.best_metric) == (2, 3)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert checkpoint.damaged(tmp_path / "best") is None


def test_a_checkpoint_is_saved_where_the_metric_is_better_and_the_best_before_it_goes(tmp_path, losses):
    losses += [5, 3, 4, 2]
    looking(tmp_path, 4, save_total_limit=1).train()
    assert names(tmp_path) == ["best", "checkpoint-4"]


def test_the_best_weights_are_those_at_the_end_where_that_is_wanted(tmp_path, losses):
    losses += [5, 3, 4]
    trainer = looking(tmp_path, 3)
    trainer.args.load_best_model_at_end = True
    trainer.train()
    assert names(tmp_path) == ["best", "checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert same(trainer.pair.student, tmp_path / "checkpoint-2")
    assert not same(trainer.pair.student, tmp_path / "checkpoint-3")


@pytest.mark.long
def test_a_run_that_was_killed_has_the_same_best_and_the_same_patience(tmp_path, losses):
    losses += [5, 3, 4, 3.5, 3.2, 3.1, 3.05]
    straight = looking(tmp_path / "straight", 9, patience=4, save_steps=3)
    straight.train()
    assert straight.state.global_step == 6
    assert stopped_early(straight.state)
    killed = looking(tmp_path / "killed", 9, patience=4, save_steps=3)
    killed.add_callback(Killed(5))
    with pytest.raises(InterruptedError):
        killed.train()
    newest = checkpoint.latest(tmp_path / "killed")
    assert newest.name == "checkpoint-3"
    resumed = looking(tmp_path / "killed", 9, patience=4, save_steps=3)
    resumed.train(resume_from_checkpoint=str(newest))
    assert resumed.state.global_step == 6
    assert stopped_early(resumed.state)
    assert (resumed.state.best_global_step, resumed.state.best_metric) == (2, 3)
    assert evaluations(tmp_path / "killed") == evaluations(tmp_path / "straight")
    assert (tmp_path / "killed" / "best").resolve().name == "checkpoint-2"
    last = TrainerState.load_from_json(str(checkpoint.latest(tmp_path / "killed") / "trainer_state.json"))
    assert last.global_step == 6  # saved where it stopped, so that a second start knows
    assert stopped_early(last)


def test_where_the_best_checkpoint_is_gone_the_best_is_sought_anew(tmp_path, losses, caplog):
    losses += [1, 3, 2.5, 2]
    stopped = looking(tmp_path, 4, save_steps=2)
    stopped.add_callback(Killed(3))
    with pytest.raises(InterruptedError):
        stopped.train()
    (tmp_path / "checkpoint-1" / "config.json").unlink()
    resumed = looking(tmp_path, 4, save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "checkpoint-1 was the best checkpoint and is damaged (config.json is missing)" in caplog.text
    assert (resumed.state.best_global_step, resumed.state.best_metric) == (4, 2)


def opened_with_held_out(folder, **train):
    """A stage of two steps, and its own first two rows as the held-out ones."""
    opened = open_tiny(folder, method=SFT())
    recipe = replace(opened.run.recipe, data=Data("rows.json", validation="held.json"))
    recipe = replace(recipe, train=replace(recipe.train, eval_steps=1, report_to=(), **train))
    for who in ("student", "teacher"):
        getattr(opened.step.pair, who).model.save_pretrained(folder / who)
    held_out = HeldOut.of(opened.rows.select(range(2)), 3)
    return replace(opened, run=replace(opened.run, recipe=recipe), held_out=held_out)


def test_a_stage_measures_exact_match_keeps_its_best_and_knows_a_second_time(tmp_path, monkeypatch, capsys):
    rounds = []

    def answer(model, processor, asked, *, max_new_tokens):
        assert max_new_tokens == 32
        rounds.append(len(asked))
        said = {question.text: question.expected for question in opened.held_out.questions} if sum(rounds) <= 3 else {}
        texts = [text_of(sample["messages"][-1]) for sample in asked]
        return [Answer(said.get(text, ""), False) for text in texts]  # all of them, then none

    monkeypatch.setattr("switchkd.train.held_out.answers", answer)
    opened = opened_with_held_out(tmp_path, metric_for_best_model="exact_match", load_best_model_at_end=True)
    assert [question.expected for question in opened.held_out.questions] == ["A cat.", "No.", "A cat."]
    train_stage(opened)
    told = capsys.readouterr().err
    assert "2 held-out rows: their loss, exact match of 3 answers of at most 32 tokens, after every 1 steps" in told
    assert "after step 1, on held-out rows: ce" in told
    assert "exact match 100.0 %" in told
    assert [line["eval_exact_match"] for line in evaluations(tmp_path)] == [100.0, 0.0]
    assert checkpoint.kept(tmp_path, best=True).name == "checkpoint-1"
    assert checkpoint.kept(tmp_path, best=False).name == "checkpoint-2"
    with torch.no_grad():
        opened.run.student.head.weight.zero_()
    monkeypatch.setattr("switchkd.train.trainer.DistillationTrainer.train", None)
    train_stage(opened)
    assert same(opened.run.student, tmp_path / "best")
    (tmp_path / "checkpoint-1" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 is the best checkpoint of its stage and is damaged"):
        checkpoint.kept(tmp_path, best=True)


def test_a_student_answers_held_out_questions_by_itself(tmp_path):
    opened = open_tiny(tmp_path)
    held_out = HeldOut.of(opened.rows, 5)
    assert Counter(question.sample for question in held_out.questions) == {0: 2, 1: 2, 2: 1}
    percent = held_out.exact_match_percent(opened.run.student.model, opened.run.processor, 2)
    assert percent in {0.0, 20.0, 40.0, 60.0, 80.0, 100.0}


def test_held_out_questions_are_asked_in_batches_of_about_one_length_and_nothing_is_shown(monkeypatch, capsys):
    lengths = (9, 3, 8, 2, 7)
    asked = tuple(Question(str(place), place, 0, "?" * length, "yes", None) for place, length in enumerate(lengths))
    batches = []

    def answer(model, processor, samples, *, max_new_tokens):
        batches.append([len(sample["messages"][-1]["content"][0]["text"]) for sample in samples])
        return [Answer("Yes." if sample["id"] in "02" else "no", False) for sample in samples]

    monkeypatch.setattr("switchkd.train.held_out.answers", answer)
    texts = [{"id": q.id, "images": [], "messages": [{"role": "user", "content": [{"type": "text", "text": q.text}]}]}
             for q in asked]  # fmt: skip
    assert HeldOut(texts, asked).exact_match_percent(tiny_llava(), tiny_processor(), 2) == 40
    assert batches == [[9, 8], [7, 3], [2]]
    assert capsys.readouterr().err == ""


def test_rows_that_are_also_trained_on_are_counted_whatever_they_are_called(tmp_path):
    held = open_tiny(tmp_path).rows
    assert count_shared(held.select([0, 1]), held.select([1, 2])) == (1, ["row-1"])
    renamed = held.map(lambda row: {"key": row["key"].replace("row", "other")})
    assert count_shared(held, renamed) == (3, ["other-0", "other-1", "other-2"])


def test_the_doctor_says_which_held_out_rows_are_trained_on(tmp_path):
    opened = open_tiny(tmp_path, method=SFT())
    looked = [
        next(held_out_check(Examined(replace(opened, rows=rows, held_out=HeldOut.of(opened.rows.select([0]), 1)))))
        for rows in (opened.rows, opened.rows.select([1, 2]))
    ]
    assert [finding.level for finding in looked] == ["warning", "ok"]
    assert (
        "1 held-out rows, 1 of their questions are asked; 1 of them ('row-0') are among the training rows"
        in looked[0].detail
    )


def test_bad_held_out_rows_are_an_error_as_bad_rows_are(tmp_path):
    opened = open_tiny(tmp_path, method=SFT())
    (tmp_path / "held.jsonl").write_text(
        '{"id": "a", "image": "none.png", "conversations": [{"from": "human", "value": "<image>Q"}, {"from": "gpt", "value": "A"}]}\n'
    )
    data = Data("rows.json", validation=str(tmp_path / "held.jsonl"))
    run = replace(opened.run, recipe=replace(opened.run.recipe, data=data))
    with pytest.raises(DataError, match=r"1 of 1 samples .*validation-rows\.json.*none\.png"):
        index_held_out(run, opened.stage, tmp_path / "1-train")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"eval_steps": 5},
            "train.eval_steps is about rows that are held out, and there are none: give data.validation",
        ),
        (
            {"load_best_model_at_end": True, "early_stopping": 2},
            "train.load_best_model_at_end and train.early_stopping",
        ),
        ({"metric_for_best_model": "exact_match", "eval_questions": 0}, "nothing would be asked"),
        ({"early_stopping": 0}, "early_stopping must be at least 1"),
        ({"metric_for_best_model": "eval_loss"}, "must be one of loss, ce, exact_match"),
        ({"arguments": {"greater_is_better": True}}, "train.metric_for_best_model says what is best"),
        ({"arguments": {"eval_steps": 5}}, "which is train.eval_steps here"),
    ],
)
def test_what_cannot_be_measured_is_refused(train, message):
    sections = {"student": {"path": "s"}, "method": "sft", "data": {"train": "a.json"}}
    with pytest.raises(ValueError, match=message):
        build_recipe({**sections, "train": {"output": "o", **train}}, "recipe")


def test_a_recipe_names_its_held_out_rows_as_those_of_training():
    sections = {"student": {"path": "s"}, "method": "sft", "train": {"output": "o"}}
    validation = ["b.json", {"path": "c.json", "weight": 2}]
    recipe = build_recipe({**sections, "data": {"train": "a.json", "validation": validation}}, "recipe")
    assert recipe.data.validation == ("b.json", WeightedData("c.json", 2.0))
