"""Whose an output folder is: one run at a time, one recipe from its first checkpoint or line of metrics on."""

import json

import pytest
from filelock import FileLock
from ranks import run_on_two_ranks
from transformers import TrainerControl, TrainerState, TrainingArguments

from switchkd.lock import Lock
from switchkd.methods import SFT
from switchkd.recipe.schema import Data, Recipe, Student, Train, load_recipe
from switchkd.train.output import open_output
from switchkd.train.run import MetricsFile


def recipe(output, **fields):
    return Recipe(Student("student"), SFT(), Data("rows.json"), Train(str(output), **fields))


def opened(output, *, resume=True, **fields):
    with open_output(recipe(output, **fields), resume=resume):
        pass
    return load_recipe(output / "recipe.yaml")


def test_a_second_run_in_the_folder_is_refused_until_the_first_has_ended(tmp_path):
    output = tmp_path / "run"
    with open_output(recipe(output), resume=True):
        before = (output / "recipe.yaml").read_bytes()
        for again in (recipe(output), recipe(output, seed=7)):
            with (
                pytest.raises(ValueError, match=r"run is in use: another process trains there"),
                open_output(again, resume=True),
            ):
                pass
        assert (output / "recipe.yaml").read_bytes() == before
    assert opened(output) == recipe(output)
    assert [path.name for path in output.iterdir()] == ["recipe.yaml"]


def test_a_default_of_locks_that_another_library_changes_is_not_ours(tmp_path, monkeypatch):
    """lmms-eval makes one object of all locks of a file, whatever they ask for, which the same process may then take twice."""
    meta, locks = type(FileLock), {}
    own = meta.__call__

    def shared(cls, file, *arguments, **options):
        if cls is not FileLock:
            return own(cls, file, *arguments, **options)
        return locks.setdefault(str(file), own(cls, file, *arguments, **options))

    monkeypatch.setattr(meta, "__call__", shared)
    assert FileLock(tmp_path / "x", is_singleton=False) is FileLock(tmp_path / "x", is_singleton=False)
    test_a_second_run_in_the_folder_is_refused_until_the_first_has_ended(tmp_path)


def test_a_lock_that_a_killed_run_left_holds_nothing(tmp_path):
    (tmp_path / ".lock").touch()
    assert opened(tmp_path) == recipe(tmp_path)
    with Lock(tmp_path / ".lock"), pytest.raises(ValueError, match="is in use"):
        opened(tmp_path)


def test_a_start_that_took_no_step_leaves_the_folder_to_the_next_recipe(tmp_path):
    def fail():
        with open_output(recipe(tmp_path, report_to=("wandb",)), resume=True):
            (tmp_path / "1-train").mkdir()
            (tmp_path / "1-train" / "rows.json").touch()
            (tmp_path / "1-train" / "metrics.jsonl").touch()
            raise ImportError("wandb is not there")

    with pytest.raises(ImportError, match="wandb is not there"):
        fail()
    assert opened(tmp_path, seed=3) == recipe(tmp_path, seed=3)
    assert opened(tmp_path, seed=4, resume=False) == recipe(tmp_path, seed=4)


@pytest.mark.parametrize("made", ["1-train/checkpoint-2/", "1-train/metrics.jsonl", "student/"])
def test_the_first_checkpoint_or_line_of_metrics_claims_it(tmp_path, made):
    opened(tmp_path)
    if made.endswith("/"):
        (tmp_path / made).mkdir(parents=True)
    else:
        (tmp_path / made).parent.mkdir()
        (tmp_path / made).write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"recipe.yaml is another recipe than this one"):
        opened(tmp_path, seed=3)
    with pytest.raises(ValueError, match="already holds a run"):
        opened(tmp_path, resume=False)
    assert opened(tmp_path) == recipe(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    with pytest.raises(ValueError, match="is not empty and not a run of switchkd"):
        opened(tmp_path)


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "theirs").touch()
    with pytest.raises(ValueError, match="is not empty and not a run of switchkd"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    with pytest.raises(ValueError, match="is not empty and not a run of switchkd"):
        opened(tmp_path / "theirs")


@pytest.mark.slow
def test_two_ranks_open_one_folder_and_are_refused_together(tmp_path):
    run_on_two_ranks("open_output.py", tmp_path)
    said = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0][0] == "opened"
    assert "already holds a run" in said[0][1]


def begin(file, step):
    """What a resumed run does with its metrics."""
    arguments = TrainingArguments(str(file.parent / "trainer"), report_to="none", use_cpu=True)
    state = TrainerState(global_step=step, is_world_process_zero=True)
    MetricsFile(file).on_train_begin(arguments, state, TrainerControl())


@pytest.mark.parametrize(
    "broken", ['{"step": 3, "lo', "", "\0\0\0\0", "[1, 2]", "7", '{"loss": 1.0}', '{"step": null}', "\ufffd\udcff"]
)
def test_a_line_that_a_killed_process_left_half_written_is_dropped(tmp_path, broken, caplog):
    file = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "loss": 2.5}', '{"step": 2, "loss": 2.25}', broken]
    file.write_bytes("\n".join(lines).encode(errors="surrogateescape"))
    begin(file, 2)
    assert file.read_text() == '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'
    assert ("metrics.jsonl, line 3" in caplog.text) == (broken != "")
    begin(file, 1)
    assert file.read_text() == '{"step": 1, "loss": 2.5}\n'


def test_a_run_that_logs_nothing_leaves_no_file(tmp_path):
    begin(tmp_path / "metrics.jsonl", 0)
    assert not (tmp_path / "metrics.jsonl").exists()
