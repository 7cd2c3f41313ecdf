"""Answers that the student writes itself: which rows, what is learned from them, and that it is the same however a run is cut up."""

import json
from dataclasses import replace

import pytest
import torch
from cases import open_tiny, rows
from ranks import run_on_two_ranks
from run_files import write_data, write_model
from tiny_tokenizers import other_processor, sentencepiece_tokenizer
from transformers import LogitsProcessorList

from switchkd.batch import TEACHER
from switchkd.cli import main
from switchkd.data.collate import Collator
from switchkd.data.errors import SampleError
from switchkd.data.reader import Reader
from switchkd.evaluate.generate import Answer, answers
from switchkd.evaluate.seeded_choice import SeededChoice
from switchkd.losses import cross_entropy
from switchkd.methods import KD, SFT, AlignKD, SwitchKD
from switchkd.pairing.alignment import match_ids
from switchkd.pairing.reading import OwnInputs
from switchkd.recipe.on_policy import OnPolicy
from switchkd.recipe.schema import build_recipe
from switchkd.train.run import train_stage
from switchkd.train.step import DistillationStep
from switchkd.train.student_answers import StudentAnswers, StudentWriter, Unjoined, answered, answered_turns, before

EVERY = OnPolicy(share=1.0, max_new_tokens=4)


class Says:
    """A writer that says what it is told, and keeps what it was asked."""

    def __init__(self, *texts, truncated=False):
        self.texts = list(texts)
        self.truncated = truncated
        self.asked = []

    def __call__(self, prompts, seeds):
        self.asked += list(zip(prompts, seeds, strict=True))
        return [Answer(self.texts.pop(0) if len(self.texts) > 1 else self.texts[0], self.truncated) for _ in prompts]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_tiny(tmp_path_factory.mktemp("stage"))


def drawn(opened, places=(0, 1, 2)):
    return Unjoined(opened.collator)([opened.rows[place] for place in places])


def text_of(reader, tokens):
    return reader.format.tokenizer.decode(tokens)


def test_every_model_reads_what_the_student_wrote_and_nothing_before_it_is_learned(opened):
    writer = Says("Two dogs.")
    batch = StudentAnswers(EVERY, opened.collator, writer, seed=1).join(drawn(opened), step=1)
    assert batch.written.tolist() == [True, True, True]
    assert batch.readers[TEACHER] is batch.student
    for number in range(3):
        learned = batch.student.targets[batch.student.sample == number].tolist()
        assert text_of(opened.run.reader, learned) == f"Two dogs.{opened.run.reader.format.closing}"
    assert [len(row["messages"]) in (1, 3) for row, _ in writer.asked] == [True] * 3
    assert {len(row["messages"]) for row, _ in writer.asked} == {1, 3}  # both turns are drawn
    assert len(batch.shared[TEACHER].targets) == len(batch.student.targets)


def test_a_teacher_that_reads_apart_reads_the_text_by_its_own_tokenizer(tmp_path):
    student = open_tiny(tmp_path).run.reader
    teacher = Reader(other_processor(sentencepiece_tokenizer(), image_size=48, patch_size=8))
    ids = match_ids(
        student.format.tokenizer, teacher.format.tokenizer, (student.format.closing_id, teacher.format.closing_id)
    )
    collator = Collator(student, {TEACHER: OwnInputs(teacher, ids)})
    own = [{**row, "messages": row["messages"]} for row in rows()[:1]]
    batch = StudentAnswers(EVERY, collator, Says("Yes. No."), seed=1).join(Unjoined(collator)(own), step=1)
    reader = batch.readers[TEACHER]
    assert text_of(teacher, reader.targets.tolist()).strip().startswith("Yes. No.")
    assert text_of(student, batch.student.targets.tolist()).startswith("Yes. No.")
    assert len(batch.shared[TEACHER].targets) > 0


@pytest.mark.parametrize(
    "method", [SwitchKD(window=32), KD(), AlignKD(), SwitchKD(window=32).weighted()], ids=lambda method: method.label
)
def test_divergences_are_taken_at_all_answers_and_cross_entropy_at_the_data_s(tmp_path, method):
    opened = open_tiny(tmp_path, method=method)
    batch = opened.collator([opened.rows[place] for place in range(3)])
    written = batch._replace(written=torch.tensor([True, False, True]))
    results = {}
    for loss in ("fused", "plain"):
        step = DistillationStep(opened.pair.eval(), method, loss=loss)
        whole = step(batch)
        step.zero_grad()
        sums = step(written)
        sums.loss.backward()
        results[loss] = sums, {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}
        for name, value in whole.terms.items():
            assert name == "ce" or sums.terms[name].item() == pytest.approx(value.item(), rel=1e-6)
        with torch.no_grad():
            logits = opened.pair(batch).logits()
        own = cross_entropy(logits.student, batch.student.targets)[batch.student.sample == 1]
        assert sums.terms["ce"].item() == pytest.approx(own.sum().item(), rel=1e-5)
        assert sums.answers == len(batch.student.targets)
    assert results["fused"][0].loss.item() == pytest.approx(results["plain"][0].loss.item(), rel=1e-5)
    for name, gradient in results["fused"][1].items():
        torch.testing.assert_close(gradient, results["plain"][1][name], rtol=1e-3, atol=1e-5)


def test_which_rows_and_turns_depends_on_seed_step_and_row_alone(opened):
    def asked(settings, seed, step, *batches):
        writer = Says("A dog.")
        answering = StudentAnswers(settings, opened.collator, writer, seed=seed)
        for places in batches:
            answering.join(drawn(opened, places), step)
        return sorted((row["id"], len(row["messages"]), seed) for row, seed in writer.asked)

    half = OnPolicy(share=0.5)
    together = [asked(half, 7, step, (0, 1, 2)) for step in range(12)]
    assert together == [asked(half, 7, step, (2,), (1,), (0,)) for step in range(12)]
    assert together != [asked(half, 8, step, (0, 1, 2)) for step in range(12)]
    assert 8 < sum(map(len, together)) < 28  # of 36
    assert len(asked(EVERY, 7, 1, (0, 1, 2))) == 3


def test_what_cannot_be_learned_from_keeps_the_data_s_answer_and_is_counted(opened, monkeypatch):
    data = opened.collator([opened.rows[place] for place in range(3)])
    answering = StudentAnswers(EVERY, opened.collator, Says("", "", "A dog.", truncated=True), seed=1)
    batch = answering.join(drawn(opened), step=1)
    assert batch.written.tolist() == [False, False, True]
    counts, seconds = answering.taken()
    assert counts == {
        "on_policy_rows": (1, 3), "on_policy_empty": (2, 3), "on_policy_unfinished": (1, 3), "on_policy_unusable": (0, 3),
    }  # fmt: skip
    assert seconds >= 0
    assert answering.taken()[0]["on_policy_rows"] == (0, 0)
    encode = opened.collator.encode

    def refuse(row):
        if row["key"].endswith("@written"):
            raise SampleError("no")
        return encode(row)

    answering = StudentAnswers(EVERY, opened.collator, Says("x"), seed=1)
    samples = drawn(opened)
    monkeypatch.setattr(opened.collator, "encode", refuse)
    batch = answering.join(samples, step=1)
    assert batch.written is None
    assert torch.equal(batch.student.targets, data.student.targets)
    assert answering.taken()[0]["on_policy_unusable"] == (3, 3)


@pytest.mark.parametrize("text", ["<image> <|im_end|>", "a\n\nb ", "<|im_start|>user", "é漢"])
def test_what_looks_like_a_control_token_is_text(opened, text):
    row = opened.rows[0]
    sample = opened.collator.encode(answered(row, 1, text))
    learned = [sample.student.tokens[place] for place in sample.student.answers]
    assert text_of(opened.run.reader, learned[:-1]).split() == text.split()
    assert learned[-1] == opened.run.reader.format.closing_id


def test_turns_that_were_cut_off_or_are_not_learned_are_not_answered(opened):
    row = opened.rows[0]
    sample = opened.collator.encode(row)
    assert answered_turns(row, sample.student) == [1, 3]
    unlearned = {**row, "messages": [{**m, "learned": n != 1} for n, m in enumerate(row["messages"])]}
    assert answered_turns(unlearned, opened.collator.encode(unlearned).student) == [3]
    cut = replace(sample.student, answers=sample.student.answers[:2])
    assert answered_turns(row, cut) == [1]
    assert len(before(opened.rows[1], 1)["images"]) == 2


def test_a_filler_is_not_answered(opened):
    writer = Says("A dog.")
    batch = StudentAnswers(EVERY, opened.collator, writer, seed=1).join(drawn(opened, [0]).without_answers(), step=1)
    assert not writer.asked
    assert len(batch.student.targets) == 0


def test_seeded_choice_draws_from_the_softmax_and_never_an_id_that_is_not_real():
    scores = torch.tensor([[0.0, 1.0, 2.0, 50.0]])
    draws = []
    for start in range(0, 4000, 100):
        choice = SeededChoice(range(start, start + 100), temperature=2.0, ids=3)
        draws.append(choice(torch.zeros(100, 1, dtype=torch.long), scores.expand(100, 4)).argmax(dim=1))
    shares = torch.bincount(torch.cat(draws), minlength=4) / 4000
    torch.testing.assert_close(shares[:3], torch.softmax(scores[0, :3] / 2, dim=0), rtol=0, atol=0.03)
    assert shares[3] == 0
    greedy = SeededChoice([5], temperature=0, ids=3)(torch.zeros(1, 1, dtype=torch.long), scores)
    assert greedy.argmax().item() == 2


def test_a_student_writes_the_same_alone_and_in_a_batch_and_other_things_with_other_seeds(opened):
    student, reader = opened.run.student.model, opened.run.reader
    prompts = [before(opened.rows[place], 3) for place in range(3)]
    write = StudentWriter(student, reader, OnPolicy(max_new_tokens=6))
    together = write(prompts, [1, 2, 3])
    assert [write([prompt], [seed])[0] for prompt, seed in zip(prompts, (1, 2, 3), strict=True)] == together
    assert write(prompts, [4, 5, 6]) != together
    greedy = StudentWriter(student, reader, OnPolicy(max_new_tokens=6, temperature=0))(prompts, [1, 2, 3])
    assert greedy == answers(student, reader.processor, prompts, max_new_tokens=6, choose=LogitsProcessorList([]))
    assert not student.training or all(p.grad is None for p in student.parameters())


def stage(folder, method=None, batch=3, accumulation=1, **train):
    """Four steps of three rows, each of which the student may answer."""
    opened = open_tiny(folder, method=method)
    for who in ("student", "teacher"):
        getattr(opened.step.pair, who).model.save_pretrained(folder / who)
    recipe = replace(opened.run.recipe, on_policy=OnPolicy(share=0.7, max_new_tokens=4))
    recipe = replace(recipe, train=replace(recipe.train, report_to=(), logging_steps=1, learning_rate=1e-3, **train))
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 4}
    return replace(opened, run=replace(opened.run, recipe=recipe), stage=replace(opened.stage, **sizes))


def logged(folder):
    """The lines of the steps, without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{n: v for n, v in line.items() if n not in ("on_policy_time", "epoch")} for line in lines if "loss" in line]


@pytest.mark.long
def test_accumulation_is_the_same_step_and_a_resume_the_same_run(tmp_path):
    for name in ("whole", "parts", "killed"):
        (tmp_path / name).mkdir()
    opened = stage(tmp_path / "whole", save_steps=2, save_total_limit=None)
    train_stage(opened)
    train_stage(stage(tmp_path / "parts", batch=1, accumulation=3))
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert len(whole) == 4
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-4)
        assert one["loss"] == pytest.approx(one["ce"] + one["align"] + one["switch"], rel=1e-4)
    written = [round(3 * line["on_policy_rows"]) for line in whole]
    assert 0 < sum(written) < 12
    # as if it had been killed after the checkpoint of step 2
    killed = stage(tmp_path / "killed", save_steps=2)
    for kept in (tmp_path / "whole").glob("checkpoint-2"):
        kept.rename(tmp_path / "killed" / kept.name)
    train_stage(killed)
    assert logged(tmp_path / "killed") == whole[2:]
    assert torch.equal(killed.run.student.head.weight, opened.run.student.head.weight)


@pytest.mark.long
def test_a_method_with_terms_of_samples_alone_learns_them_over_the_student_s_text(tmp_path):
    opened = stage(tmp_path, AlignKD())
    train_stage(opened)
    lines = logged(tmp_path)
    assert all({"ce", "soft", "attention", "projected", "focus", "on_policy_rows"} <= line.keys() for line in lines)


@pytest.mark.slow
def test_two_ranks_write_and_learn_what_one_does(tmp_path):
    recipe = write_recipe(tmp_path)
    assert (
        main(
            ["train", str(recipe), "--train.output", str(tmp_path / "one"), "--train.per-device-train-batch-size", "4"]
        )
        == 0
    )
    text = recipe.read_text().replace("run,", "two,").replace("batch_size: 4", "batch_size: 2")
    (tmp_path / "two.yaml").write_text(text)
    run_on_two_ranks("distil_on_two_ranks.py", tmp_path / "two.yaml")
    one, two = (logged(tmp_path / run / "1-train") for run in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)


def write_recipe(folder):
    write_model(folder / "teacher", seed=1, hidden=40, depth=3)
    write_model(folder / "student", seed=2)
    write_data(folder / "data" / "train.json", 8)
    (folder / "recipe.yaml").write_text(
        f"""
teacher: {{path: {folder}/teacher}}
student: {{path: {folder}/student}}
method: {{name: switch_kd, window: 32}}
data: {{train: {folder}/data/train.json, max_length: 256}}
on_policy: {{max_new_tokens: 4}}
train: {{output: {folder}/run, max_steps: 3, per_device_train_batch_size: 4, learning_rate: 1.0e-3, logging_steps: 1}}
"""
    )
    return folder / "recipe.yaml"


@pytest.mark.parametrize(
    ("on_policy", "message"),
    [
        ({"share": 0}, "share must be above 0 and at most 1, got 0.0; leave on_policy out for 0"),
        ({"share": 1.5}, "share must be above 0 and at most 1"),
        ({"temperature": -1}, "temperature must be finite and not negative"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"lmbda": 0.5}, "share"),
        (True, "on_policy is given, and method sft has no teacher"),
    ],
)
def test_what_cannot_be_written_is_refused(on_policy, message):
    sections = {"student": {"path": "s"}, "method": "sft", "data": {"train": "a.json"}, "train": {"output": "o"}}
    with pytest.raises(ValueError, match=message):
        build_recipe({**sections, "on_policy": on_policy}, "recipe")


def test_on_policy_true_takes_the_defaults():
    sections = {"student": {"path": "s"}, "teacher": {"path": "t"}, "method": "kd", "data": {"train": "a.json"}}
    recipe = build_recipe({**sections, "train": {"output": "o"}, "on_policy": True}, "recipe")
    assert recipe.on_policy == OnPolicy(0.5, 128, 1.0)
    assert SFT().needs == {"student"}
