"""One step is one step: however the global batch is cut up, the loss, the log and the weights are the same."""

import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import open_tiny
from ranks import run_on_two_ranks
from rich.console import Console
from rich.progress import MofNCompleteColumn
from safetensors.torch import load_file
from steps import UNEVEN, collate, make_trainer, read_metrics, rows, train, uneven_rows
from tiny_models import tiny_llava
from transformers import TrainerCallback

from switchkd.batch import TEACHER
from switchkd.losses import cross_entropy, dbild
from switchkd.methods import METHODS, SFT, AlignKD, SwitchKD
from switchkd.models import Pathway
from switchkd.signals import TokenTerm
from switchkd.train import checkpoint, lora
from switchkd.train.progress import Progress, _Bar
from switchkd.train.run import train_stage
from switchkd.train.stage import total_steps


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Batch 4 × 1."""
    output = tmp_path_factory.mktemp("whole")
    train(output, 4, 1)
    return output


def assert_same_log(one: Path, other: Path, names: tuple[str, ...]) -> None:
    """In the precision of the log: the Trainer keeps the loss in float32."""
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        assert a["answer_tokens"] == b["answer_tokens"]
        for name in names:
            assert math.isclose(a[name], b[name], rel_tol=1e-6, abs_tol=1e-6), name


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_log(one, other, ("loss", "ce", "align", "switch", "knee_teacher", "knee_student", "knee_switch"))
    first, second = torch.load(one / "student.pt"), torch.load(other / "student.pt")
    assert max((first[name] - second[name]).abs().max() for name in first) < 1e-5
    start = Pathway(tiny_llava(seed=2).double()).state_dict()
    assert max((first[name] - start[name]).abs().max() for name in first) > 1e-3  # and it moved


def test_accumulation_is_the_same_step(whole, tmp_path):
    train(tmp_path, 1, 4)
    assert_same_run(whole, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(("batch_size", "accumulation"), [pytest.param(2, 1, marks=pytest.mark.slow), (1, 2)])
def test_two_processes_are_the_same_step(whole, tmp_path, batch_size, accumulation):
    """Rows alone in a batch are without an image now and then, while those of the other rank have one."""
    run_on_two_ranks("steps.py", tmp_path, batch_size, accumulation)
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_two_processes_learn_every_row_once_and_leave_alone_what_no_row_uses(tmp_path):
    """Ten rows in steps of four: in the last one a rank has no row. In steps without an image, vision has no gradient and stays."""
    trainer = make_trainer(tmp_path / "one", data=uneven_rows(), **UNEVEN)
    seen = SeenImages(trainer.pair.student)
    trainer.add_callback(seen)
    trainer.train()
    assert len(seen.steps) == 6
    assert sum(seen.steps) == 2  # one in each epoch
    run_on_two_ranks("steps.py", tmp_path / "two", 2, 1, "uneven")
    assert_same_log(tmp_path / "one", tmp_path / "two", ("loss", "ce", "align", "switch"))
    one, two = trainer.pair.student.state_dict(), torch.load(tmp_path / "two" / "student.pt")
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-9


class SeenImages(TrainerCallback):
    """Notes of every step whether the vision encoder has a gradient."""

    def __init__(self, student):
        self.parameters = [p for p in student.part_parameters("vision").values() if p.requires_grad]
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.steps.append(self.parameters[0].grad is not None)


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_a_projector_alone_learns_nothing_from_a_step_without_images_and_goes_on(tmp_path, loss):
    learner = Pathway(tiny_llava(seed=2).double())
    learner.train_only(("projector",))
    data = rows(4)  # the last has no image
    trainer = make_trainer(tmp_path, data=data, method=SFT(), loss=loss, student=learner, batch_size=1, steps=4)
    seen = Moved(learner)
    trainer.add_callback(seen)
    trainer.train()
    assert sorted(seen.steps) == [False, True, True, True]


class Moved(TrainerCallback):
    """Notes of every step whether the projector is another one after it."""

    def __init__(self, student):
        self.parameters = student.part_parameters("projector")
        self.steps = []
        self._keep()

    def _keep(self):
        self.before = {name: p.detach().clone() for name, p in self.parameters.items()}

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(any(not torch.equal(p, self.before[name]) for name, p in self.parameters.items()))
        self._keep()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_a_batch_without_answers_has_no_loss(tmp_path, name, loss):
    """That of a rank for which no row is left: every parameter still has a gradient, of zero."""
    trainer = make_trainer(tmp_path, method=METHODS[name](), loss=loss)
    batch = collate(rows(2))
    sums = trainer.step(batch.without_answers())
    assert sums.loss == 0
    assert sums.answers == 0
    sums.loss.backward()
    learning = [p for p in trainer.step.parameters() if p.requires_grad]
    assert sum(p.grad is not None for p in learning) == len(learning)
    assert not any(p.grad.any() for p in learning)
    full = trainer.step(batch)
    assert full.answers == len(batch.student.targets) > 0


@pytest.mark.slow
def test_two_processes_learn_the_same_maps(tmp_path):
    """Of align_kd; without an image, the maps of a rank still get a gradient."""
    train(tmp_path / "whole", 4, 1, "align_kd")
    run_on_two_ranks("steps.py", tmp_path / "ranks", 1, 2, "align_kd")
    one, other = (
        [torch.load(tmp_path / run / f"{n}.pt") for n in ("student", "learned")] for run in ("whole", "ranks")
    )
    for a, b in zip(one, other, strict=True):
        assert max((a[name] - b[name]).abs().max() for name in a) < 1e-5
    names = ("loss", "ce", "soft", "attention", "projected", "focus")
    assert_same_log(tmp_path / "whole", tmp_path / "ranks", names)


def test_the_first_loss_is_the_sum_of_the_terms_over_all_answer_tokens(whole, tmp_path):
    trainer = make_trainer(tmp_path)
    batches = list(trainer.get_train_dataloader())
    logits = trainer.pair.train()(batches[0]).logits()
    compared = logits.compared[TEACHER]
    ce = cross_entropy(logits.student, batches[0].student.targets)
    align = dbild(compared.student, compared.teacher, window=32)
    switch = dbild(compared.switch, compared.teacher, window=32)
    first = read_metrics(whole)[0]
    assert first["loss"] == pytest.approx((ce + align + switch).mean().item(), abs=1e-6)
    for name, term in {"ce": ce, "align": align, "switch": switch}.items():
        assert first[name] == pytest.approx(term.mean().item(), abs=1e-6)
    assert first["answer_tokens"] == ce.numel()


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [None, AlignKD(), SwitchKD(window=32, switch_warmup=0.75)],
    ids=["switch_kd", "align_kd", "warm-up"],
)
def test_resume_repeats_the_uninterrupted_run(tmp_path, method):
    saving = {
        "method": method,
        "save_strategy": "steps",
        "save_steps": 3,
        "optim": "adamw_torch",
        "learning_rate": 1e-3,
    }
    straight = make_trainer(tmp_path / "straight", steps=8, **saving)
    straight.train()
    # the killed run: 8 steps planned, stopped after the checkpoint of step 3
    stopped = make_trainer(tmp_path / "resumed", steps=8, **saving)
    stopped.add_callback(StopAt(4))
    stopped.train()
    newest = checkpoint.latest(tmp_path / "resumed")
    assert newest.name == "checkpoint-3"
    resumed = make_trainer(tmp_path / "resumed", steps=8, student=fresh_student(seed=9), **saving)
    resumed.train(resume_from_checkpoint=str(newest))
    assert [(m["step"], m["loss"]) for m in read_metrics(tmp_path / "straight")] == [
        (m["step"], m["loss"]) for m in read_metrics(tmp_path / "resumed")
    ]
    for (name, a), b in zip(straight.pair.student.named_parameters(), resumed.pair.student.parameters(), strict=True):
        assert torch.equal(a, b), name
    if straight.pair.learned is not None:
        start = make_trainer(tmp_path / "start", method=method).pair.learned.state_dict()
        for name, learned in straight.pair.learned.state_dict().items():
            assert torch.equal(learned, resumed.pair.learned.state_dict()[name])
            assert not torch.equal(learned, start[name]), name
        assert (newest / "learned.safetensors").exists()
        assert not [name for name in load_file(newest / "model.safetensors") if "learned" in name or "width" in name]


def fresh_student(seed):
    student = Pathway(tiny_llava(seed=seed).double())
    student.train_only(("vision", "projector", "language"))
    return student


class StopAt(TrainerCallback):
    """Ends training after a step, without a checkpoint of it."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        control.should_save = control.should_save and not control.should_training_stop


def test_a_batch_without_answers_is_an_error(tmp_path):
    blank = [{**row, "answers": []} for row in rows()]
    with pytest.raises(ValueError, match="step 1: the global batch has no answer token"):
        make_trainer(tmp_path, data=blank).train()


def test_nan_stops_before_the_update(tmp_path):
    trainer = make_trainer(tmp_path, method=SFT())
    before = {name: value.clone() for name, value in trainer.pair.student.state_dict().items()}

    def poison(gradient):
        return gradient * float("nan")

    trainer.pair.student.model.model.multi_modal_projector.linear_1.weight.register_hook(poison)
    with pytest.raises(FloatingPointError, match="step 1: the gradient is not finite; stopped before the update"):
        trainer.train()
    after = trainer.pair.student.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_term_that_is_not_finite_stops_with_its_name(tmp_path):
    class Broken(SFT):
        def token_terms(self, logits):
            return {"ce": TokenTerm(super().token_terms(logits)["ce"].values * float("inf"))}

    message = r"step 1: the loss is not finite \(ce inf\); all logits are finite; samples 'row-\d+', 'row-\d+', 'row-\d+', 'row-\d+'; stop"
    with pytest.raises(FloatingPointError, match=message):
        make_trainer(tmp_path, method=Broken()).train()


def poisoned(data, number):
    """The rows, of which one has a pixel that is not finite."""
    pixels = data[number]["pixels"].clone()
    pixels[0, 0, 0, 0] = float("nan")
    return [{**row, "pixels": pixels} if index == number else row for index, row in enumerate(data)]


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_a_loss_that_is_not_finite_names_the_sample_and_the_pathways(tmp_path, loss):
    with pytest.raises((FloatingPointError, ValueError)) as caught:
        make_trainer(tmp_path, data=poisoned(rows(4), 2), loss=loss).train()
    message = str(caught.value)
    assert message.startswith("step 1")
    assert "'row-2'" in message
    if loss == "fused":  # the plain terms refuse such logits themselves
        assert message.startswith("step 1: the loss is not finite (ce nan, ")
        assert "logits are not finite in 'row-2' (student, teacher, switch); stopped before the update" in message


def test_only_the_pathway_that_is_not_finite_is_blamed(tmp_path):
    trainer = make_trainer(tmp_path, data=rows(4))
    with torch.no_grad():
        trainer.pair.student.model.model.multi_modal_projector.linear_1.weight.fill_(float("inf"))
    with pytest.raises(
        FloatingPointError, match=r"logits are not finite in ('row-[012]' \(student\)(; )?){3}; stopped"
    ):
        trainer.train()


def test_an_error_inside_the_step_names_its_samples(tmp_path):
    """As a bridge raises it where the two models cut images into other numbers of tiles."""
    trainer = make_trainer(tmp_path, data=rows(4))

    def refuse(seen, batch):
        raise ValueError("the student sees 3 pictures in this batch and the teacher 4")

    trainer.pair.cross = refuse
    named = r"step 1, samples ('row-\d'(, )?){4}: the student sees 3 pictures in this batch and the teacher 4"
    with pytest.raises(ValueError, match=named):
        trainer.train()


@pytest.mark.parametrize("loss", ["fused", "plain"])
def test_a_target_outside_the_vocabulary_names_the_samples(tmp_path, loss, unchecked_shapes):
    def beyond(samples):
        batch = collate(samples)
        targets = batch.student.targets.clone()
        targets[0] = 97
        return batch._replace(student=batch.student._replace(targets=targets))

    trainer = make_trainer(tmp_path, data=rows(4), method=SFT(), loss=loss)
    trainer.data_collator = beyond
    with pytest.raises(
        ValueError, match=r"step 1, samples ('row-\d'(, )?){4}: targets must be ids from 0 to 95: 97 at position 0"
    ):
        trainer.train()


def test_checkpoints_hold_the_student_only(tmp_path):
    trainer = make_trainer(tmp_path, steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    folder = tmp_path / "checkpoint-1"
    files = {file.name for file in folder.iterdir()}
    assert files == {
        "README.md", "config.json", "generation_config.json", "log.json", "manifest.json", "model.safetensors",
        "processor_config.json", "trainer_state.json",
    }  # fmt: skip
    student = sum(p.numel() for p in trainer.pair.student.parameters())
    assert sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) == student
    assert not (tmp_path / ".saving").exists()
    restored = fresh_student(seed=5)
    checkpoint.load_student(restored, folder)
    for a, b in zip(restored.parameters(), trainer.pair.student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    make_trainer(tmp_path, steps=2, save_strategy="steps", save_steps=1).train()
    weights = tmp_path / "checkpoint-2" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert checkpoint.latest(tmp_path).name == "checkpoint-1"
    assert "model.safetensors does not match its checksum" in caplog.text
    (tmp_path / "checkpoint-1" / "scheduler.pt").unlink()
    assert checkpoint.latest(tmp_path) is None


def test_rotation_keeps_the_newest(tmp_path):
    make_trainer(tmp_path, steps=4, save_strategy="steps", save_steps=1, save_total_limit=2).train()
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_metrics_are_json_lines(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[:3]] == [1, 2, 3]
    assert lines[0]["grad_norm"] > 0


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulation", "epochs", "steps"),
    [
        (12, 4, 1, 0.3, 1),
        (12, 4, 1, 1.5, 5),
        (12, 4, 1, 2.0, 6),
        (13, 4, 1, 1.0, 4),
        (13, 2, 3, 1.5, 5),
        (3, 2, 64, 1.0, 1),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(tmp_path, count, batch_size, accumulation, epochs, steps):
    sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    settings = {"batch_size": batch_size, "accumulation": accumulation, "steps": -1, "num_train_epochs": epochs}
    trainer = make_trainer(tmp_path, data=rows(count), **settings)
    assert trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1] == steps
    opened = open_tiny(tmp_path)
    stage = replace(opened.stage, max_steps=-1, num_train_epochs=epochs, **sizes)
    assert total_steps(replace(opened, stage=stage, rows=opened.rows.select([0] * count))) == steps


def test_a_stage_without_rows_is_refused(tmp_path):
    opened = open_tiny(tmp_path)
    stage = replace(opened.stage, max_steps=-1, num_train_epochs=1.0)
    with pytest.raises(ValueError, match="stage train: 0 rows make 0 steps: nothing would be trained"):
        train_stage(replace(opened, stage=stage, rows=opened.rows.select([])))


def test_a_method_may_call_its_terms_as_it_likes(tmp_path, capsys):
    class Renamed(SFT):
        def token_terms(self, logits):
            return {f"my_{name}": term for name, term in super().token_terms(logits).items()}

    trainer = make_trainer(tmp_path, method=Renamed())
    trainer.add_callback(Progress("train", trainer.terms, trainer.speed))
    trainer.train()
    lines = read_metrics(tmp_path)
    for line in lines:
        assert line["my_ce"] == pytest.approx(line["loss"], abs=1e-6)
    first = next(iter(make_trainer(tmp_path / "other").get_train_dataloader()))
    assert lines[0]["answer_tokens"] == len(first.student.targets)
    last = capsys.readouterr().err.splitlines()[-1]
    said = rf"train: step 3 of 3  my_ce {lines[-1]['my_ce']:.3f}  lr \d\.\de-\d\d  "
    assert re.fullmatch(
        said + r"[\d,]+ tokens/s  [\d.]+ samples/s  [\d.e-]+ TFLOP/s  [\d.]+ GiB at most  0:00:00 left", last
    ), last


def test_on_a_terminal_the_bar_and_what_was_logged_have_lines_of_their_own():
    screen = io.StringIO()
    bar = _Bar(MofNCompleteColumn(), console=Console(file=screen, width=80, force_terminal=True))
    bar.add_task("train", total=6, completed=2)
    bar.logged = "loss 1.000  " + "ce 1.000  " * 5 + "0:00:10 left"
    with bar:
        pass
    shown = " ".join(re.sub(r"\x1b\[[0-9;?]*\w", "", screen.getvalue()).split())
    assert "2/6" in shown
    assert " ".join(bar.logged.split()) in shown


def test_checkpoints_of_other_students_are_refused(tmp_path):
    plain, adapted, other = (fresh_student(seed=2) for _ in range(3))
    card, processor = "# tiny\n", make_trainer(tmp_path / "t").processor
    checkpoint.save_student(plain, processor, card, tmp_path / "plain")
    for student, parts in ((adapted, ("vision", "projector", "language")), (other, ("language",))):
        lora.add(student, r=2, alpha=4, dropout=0.0)
        student.train_only(parts)
    checkpoint.save_student(adapted, processor, card, tmp_path / "adapted")
    with pytest.raises(ValueError, match="plain was saved without LoRA, and the recipe's student has LoRA"):
        checkpoint.load_student(adapted, tmp_path / "plain")
    saved, wanted = (sum(p.requires_grad for p in student.parameters()) for student in (adapted, other))
    with pytest.raises(ValueError, match=f"holds {saved} trained tensors where the recipe trains {wanted}"):
        checkpoint.load_student(other, tmp_path / "adapted")
