"""Checkpoints that are damaged, foreign or from something else: none costs a sound one, and none is gone on from unseen."""

import json
import os
import pickle
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from cases import open_tiny
from ranks import run_on_two_ranks
from steps import make_trainer, read_metrics
from transformers import TrainerCallback

from switchkd import interrupts
from switchkd.interrupts import Interrupted, caught
from switchkd.manifest import find_damage, write_manifest
from switchkd.methods import KD, SFT
from switchkd.train import checkpoint
from switchkd.train.origin import ORIGIN, check_origin
from switchkd.train.run import train_stage
from switchkd.train.stop import StopAtStepEnd
from switchkd.train.trainer import LOG, DistillationTrainer

FILES = ("trainer_state.json", "config.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def write_checkpoint(run, step):
    """A sound one, of files that hold nothing."""
    checkpoint.clear_staging(run)
    staged = run / ".saving" / f"checkpoint-{step}"
    staged.mkdir()
    for name in FILES:
        (staged / name).write_text(f"{name} of {step}")
    return checkpoint.publish(run, step)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("limit", [1, 2])
def test_rotation_removes_sound_checkpoints_only_and_never_the_one_just_written(tmp_path, limit):
    (tmp_path / "checkpoint-99").mkdir()
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
        if step == 2:
            (tmp_path / "checkpoint-2" / "optimizer.pt").write_text("something else")
        checkpoint.rotate(tmp_path, step, limit)
    kept = ["checkpoint-1"] if limit == 2 else []  # sound, where that of step 2 is not
    if limit == 1:  # it was sound when step 2 was saved, and went
        assert not (tmp_path / "checkpoint-1").exists()
    assert names(tmp_path) == [*kept, "checkpoint-2", "checkpoint-3", "checkpoint-99"]


def test_what_is_passed_over_is_set_aside(tmp_path, caplog):
    for step in (1, 2):
        write_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-99").mkdir()
    assert checkpoint.resume_point(tmp_path) == tmp_path / "checkpoint-1"
    assert names(tmp_path) == ["checkpoint-1", "passed-over-checkpoint-2", "passed-over-checkpoint-99"]
    assert "checkpoint-2 is now passed-over-checkpoint-2 (it is damaged: optimizer.pt is missing)" in caplog.text
    (tmp_path / "checkpoint-99").mkdir()
    assert checkpoint.resume_point(tmp_path) == tmp_path / "checkpoint-1"
    assert "passed-over-checkpoint-99-2" in names(tmp_path)


def test_a_checkpoint_is_published_over_a_damaged_one_of_its_step(tmp_path):
    (tmp_path / "checkpoint-1").mkdir()
    write_checkpoint(tmp_path, 1)
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-1"
    assert names(tmp_path) == ["checkpoint-1", "passed-over-checkpoint-1"]


def test_a_removal_that_was_killed_is_finished_and_no_damage(tmp_path):
    (tmp_path / ".checkpoint-1.removed").mkdir()
    assert checkpoint.resume_point(tmp_path) is None
    write_checkpoint(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-2"]


def sums(folder):
    return json.loads((folder / "manifest.json").read_text())


MANIFESTS = {
    "null": (lambda now: None, "is no list of checksums"),
    "list": (lambda now: list(now), "is no list of checksums"),
    "text": (lambda now: "manifest", "is no list of checksums"),
    "number": (lambda now: 7, "is no list of checksums"),
    "empty": (lambda now: {}, "is no list of checksums"),
    "nested": (lambda now: {"files": now}, "the checksum of 'files' is .* no SHA-256"),
    "no text": (lambda now: now | {"config.json": None}, "the checksum of 'config.json' is None"),
    "outside": (lambda now: now | {"../outside": now["config.json"]}, r"names '../outside', which does not lie in the"),
    "absolute": (lambda now: now | {"/etc/passwd": now["config.json"]}, "names '/etc/passwd', which does not lie in"),
    "too few": (
        lambda now: {k: v for k, v in now.items() if k != "config.json"},
        "config.json is not named in manifest.json",
    ),
    "too many": (lambda now: now | {"more": now["config.json"]}, "more is missing"),
    "another": (lambda now: now | {"config.json": 64 * "0"}, "config.json does not match its checksum"),
}


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_of_another_shape_is_damage(tmp_path, change):
    folder = write_checkpoint(tmp_path, 1)
    assert checkpoint.damaged(folder) is None
    (tmp_path / "outside").write_text("config.json of 1")
    changed, message = MANIFESTS[change]
    (folder / "manifest.json").write_text(json.dumps(changed(sums(folder))))
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(checkpoint.damaged(folder))


def test_files_that_resuming_needs_must_be_named(tmp_path):
    for name in FILES:
        folder = write_checkpoint(tmp_path, 1)
        (folder / name).unlink()
        write_manifest(folder)
        assert "which resuming needs" in checkpoint.damaged(folder)
        shutil.rmtree(folder)


def test_a_link_out_of_the_checkpoint_is_damage(tmp_path):
    folder = write_checkpoint(tmp_path, 1)
    (tmp_path / "outside").write_text("config.json of 1")
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(tmp_path / "outside")
    assert find_damage(folder) == "config.json is a link out of the folder"


def test_the_last_checkpoint_of_a_stage_has_nothing_that_only_a_further_step_needs(tmp_path):
    make_trainer(tmp_path, method=SFT(), steps=2, save_strategy="steps", save_steps=1).train()
    first, last = ({path.name for path in (tmp_path / f"checkpoint-{step}").iterdir()} for step in (1, 2))
    assert first - last == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert last < first
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-2"
    (tmp_path / "checkpoint-1" / "optimizer.pt").unlink()
    write_manifest(tmp_path / "checkpoint-1")
    assert checkpoint.damaged(tmp_path / "checkpoint-1") == "it has no *optim*, which resuming needs"


def test_a_finished_stage_is_known_by_its_last_checkpoint_and_takes_no_more_steps(tmp_path, monkeypatch):
    opened = open_tiny(tmp_path, method=SFT())
    for who in ("student", "teacher"):
        getattr(opened.step.pair, who).model.save_pretrained(tmp_path / who)
    train_stage(opened)
    learned = {name: p.detach().clone() for name, p in opened.run.student.named_parameters()}
    again = open_tiny(tmp_path, method=SFT())
    monkeypatch.setattr(DistillationTrainer, "train", None)
    train_stage(again)
    assert all(torch.equal(p, learned[name]) for name, p in again.run.student.named_parameters())
    with pytest.raises(
        ValueError, match=r"checkpoint-2 ended a stage of 2 steps and has no \*optim\*.* now the stage has 3"
    ):
        train_stage(replace(again, stage=replace(again.stage, max_steps=3)))


def test_a_longer_stage_goes_on_from_the_newest_checkpoint_that_it_can(tmp_path, caplog):
    make_trainer(tmp_path, method=SFT(), steps=3, save_strategy="steps", save_steps=1).train()
    assert checkpoint.point_to_go_on_from(tmp_path, 4) == tmp_path / "checkpoint-2"
    assert "checkpoint-3 ended a stage of 3 steps, without optimizer: going on from step 2" in caplog.text


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Three steps, of which the checkpoint of the second is left."""
    output = tmp_path_factory.mktemp("stopped")
    make_trainer(output, method=SFT(), steps=3, save_strategy="steps", save_steps=2).train()
    return output / "checkpoint-2"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_named_file_that_is_missing_while_loading_is_an_error(stopped, tmp_path, name):
    folder = shutil.copytree(stopped, tmp_path / "checkpoint-2")
    (folder / name).unlink()
    trainer = make_trainer(tmp_path, method=SFT(), steps=3)
    with pytest.raises(ValueError, match=rf"{name} is missing, and manifest.json names it"):
        trainer.train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_objects_in_a_checkpoint_are_refused_in_our_words(stopped, tmp_path, name):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    folder = shutil.copytree(stopped, tmp_path / "checkpoint-2")
    torch.save({"x": Trap()}, folder / name, pickle_module=pickle)
    write_manifest(folder)
    with pytest.raises(ValueError, match=r"holds Python objects, which could run code .* Remove this folder") as caught:
        make_trainer(tmp_path, method=SFT(), steps=3).train(resume_from_checkpoint=str(folder))
    assert "weights_only" not in str(caught.value).split("Remove")[0]
    assert not (tmp_path / "sprung").exists()


NOW = {"rows": "24 rows (ab)", "teacher": "cd", "start weights": "ef", "processes": 2, "rows of a step": 8}


@pytest.mark.parametrize("name", NOW)
def test_a_resume_from_something_else_is_an_error_that_names_it(tmp_path, name, caplog):
    (tmp_path / ORIGIN).write_text(json.dumps(NOW | {name: "other"}))
    with pytest.raises(
        ValueError, match=rf"{name}: other then, {NOW[name]} now".replace("(", r"\(").replace(")", r"\)")
    ):
        check_origin(tmp_path, NOW, finished=False, accept_changes=False)
    check_origin(tmp_path, NOW, finished=False, accept_changes=True)
    assert f"{name}: other then" in caplog.text
    (tmp_path / ORIGIN).unlink()
    with pytest.raises(ValueError, match="rows: not known then, 24 rows"):
        check_origin(tmp_path, NOW, finished=False, accept_changes=False)


def test_a_finished_stage_does_not_depend_on_the_number_of_processes(tmp_path):
    (tmp_path / ORIGIN).write_text(json.dumps(NOW | {"processes": 1, "rows of a step": 4}))
    check_origin(tmp_path, NOW, finished=True, accept_changes=False)


class Signal(TrainerCallback):
    """Sends one to its own process in the middle of a step."""

    def __init__(self, step, number, times=1):
        self.step, self.number, self.times = step, number, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def run_until(output, number, *, times=1, **arguments):
    trainer = make_trainer(output, method=SFT(), steps=6, logging_steps=3, optim="adamw_torch", **arguments)
    stop = StopAtStepEnd()
    trainer.add_callback(stop)
    trainer.add_callback(Signal(1, number, times))
    with caught(stop.note):
        trainer.train()
        stop.raise_if_stopped(trainer.args, "train", trainer.state)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_at_the_end_of_the_step_and_the_run_goes_on_as_if_there_had_been_none(tmp_path, number):
    message = (
        rf"{number.name}: stage train is saved in .*/checkpoint-2, step 2 of 6; the same command goes on from there"
    )
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=message) as stopped:
        run_until(tmp_path / "stopped", number)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) is before
    again = make_trainer(tmp_path / "stopped", method=SFT(), steps=6, logging_steps=3, optim="adamw_torch")
    again.train(resume_from_checkpoint=str(checkpoint.latest(tmp_path / "stopped")))
    straight = make_trainer(tmp_path / "straight", method=SFT(), steps=6, logging_steps=3, optim="adamw_torch")
    straight.train()
    for one, other in zip(straight.pair.student.parameters(), again.pair.student.parameters(), strict=True):
        assert torch.equal(one, other)
    assert read_metrics(tmp_path / "straight") == read_metrics(
        tmp_path / "stopped"
    )  # lines of three steps, cut after two
    losses = [trainer.state.log_history[-1]["train_loss"] for trainer in (straight, again)]
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(sum(line["loss"] for line in read_metrics(tmp_path / "straight")) / 2)


def test_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts, "REPEAT_S", 0)
    with pytest.raises(Interrupted, match="ended at once by a second signal, SIGTERM, without saving"):
        run_until(tmp_path, signal.SIGTERM, times=2)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_signals_that_come_together_are_one(tmp_path):
    """As `timeout` and `torchrun` send them: to a process, and to its whole group."""
    with pytest.raises(Interrupted, match="stage train is saved"):
        run_until(tmp_path, signal.SIGTERM, times=3)
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-2"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_until(tmp_path, signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_at_one_step(tmp_path):
    run_on_two_ranks("signal_one_rank.py", tmp_path)
    said = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1] == [2, 128 + signal.SIGTERM]
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-2"


def test_learning_rates_of_parts_are_logged_for_the_step_that_used_them(tmp_path):
    logged = []
    for name, rates in (("one", {}), ("parts", {"projector": 1e-3})):
        trainer = make_trainer(tmp_path / name, method=SFT(), steps=4, warmup_steps=2)
        trainer.rates = rates
        trainer.train()
        logged.append([line["learning_rate"] for line in read_metrics(tmp_path / name)])
    assert logged[0] == pytest.approx(logged[1])
    assert logged[0][0] == 0
    assert [line["learning_rate_projector"] for line in read_metrics(tmp_path / "parts")] == pytest.approx(
        [rate / 10 for rate in logged[0]]
    )


def test_a_disk_that_takes_no_more_is_named_and_no_half_checkpoint_stays(tmp_path, monkeypatch):
    def full(*arguments, **how):
        raise RuntimeError(
            "[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed writing file\nframe #0"
        )

    trainer = make_trainer(tmp_path, method=SFT(), steps=3, save_strategy="steps", save_steps=1)
    saved = torch.save
    monkeypatch.setattr(
        torch, "save", lambda *args, **how: (full if trainer.state.global_step == 2 else saved)(*args, **how)
    )
    message = r"checkpoint-2 cannot be written: .*failed writing file; \d+ MiB are free .* make room, or choose another folder"
    with pytest.raises(OSError, match=message):
        trainer.train()
    assert checkpoint.latest(tmp_path) == tmp_path / "checkpoint-1"
    assert not (tmp_path / ".saving").exists()


def test_a_stage_keeps_its_origin_and_refuses_another(tmp_path):
    opened = open_tiny(tmp_path, method=KD())
    for who in ("student", "teacher"):
        model = getattr(opened.step.pair, who).model
        model.save_pretrained(tmp_path / who)
    train_stage(opened)
    origin = json.loads((tmp_path / "checkpoint-2" / ORIGIN).read_text())
    assert origin["rows"].startswith("3 rows (")
    assert (origin["processes"], origin["rows of a step"]) == (1, 2)
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(
        ValueError, match=r"teacher: [0-9a-f]{16} then, [0-9a-f]{16} now\. Put back .* --accept-changes"
    ):
        train_stage(opened)
    train_stage(opened, accept_changes=True)


def test_a_checkpoint_of_an_older_version_is_gone_on_from(tmp_path, caplog):
    """As `--accept-changes` allows: it has no log.json, and train_loss is then that of the steps that are taken now."""
    settings = {"method": SFT(), "steps": 3, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, **settings).train()
    older = tmp_path / "checkpoint-2"
    (older / LOG).unlink()
    write_manifest(older)
    trainer = make_trainer(tmp_path, **settings)
    resumed = trainer.train(resume_from_checkpoint=str(older))
    assert f"{older / LOG} is missing" in caplog.text
    (last,) = [line["loss"] for line in read_metrics(tmp_path)][-1:]
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(last)
    assert resumed.global_step == 3
