"""What a recipe hands on reaches the Trainer's arguments, and a revision its folder."""

from dataclasses import replace

import pytest
from cases import open_tiny
from huggingface_hub import HfApi

from switchkd.models.revision import at_revision
from switchkd.train.run import arguments
from switchkd.train.upload import prepare_upload, upload


@pytest.fixture
def opened(tmp_path):
    return open_tiny(tmp_path)


def handed(opened, given):
    recipe = opened.run.recipe
    train = replace(recipe.train, arguments=given)
    return replace(opened, run=replace(opened.run, recipe=replace(recipe, train=train)))


def test_what_is_handed_on_reaches_the_trainer(opened):
    given = {"optim": "adamw_8bit", "adam_beta2": 0.95, "run_name": "mine", "save_strategy": "epoch", "ddp_timeout": 60}
    made = arguments(handed(opened, given | {"logging_first_step": True}))
    assert (made.optim, made.adam_beta2, made.run_name, made.ddp_timeout) == ("adamw_8bit", 0.95, "mine", 60)
    assert (made.save_strategy, made.logging_first_step) == ("epoch", True)
    plain = arguments(opened)
    assert (plain.adam_beta2, plain.save_strategy) == (0.999, "steps")


@pytest.mark.parametrize(
    ("given", "steps"), [({}, 1), ({"warmup_steps": 1}, 1), ({"warmup_steps": 7}, 1), ({"warmup_steps": 0}, 0)]
)
def test_steps_of_warming_up_leave_the_last_step(opened, given, steps):
    assert arguments(handed(opened, given)).warmup_steps == steps  # of two


def test_the_upload_is_not_the_trainers(opened, monkeypatch):
    made = []
    for name in ("create_repo", "create_branch", "upload_folder"):
        monkeypatch.setattr(HfApi, name, lambda self, *given, name=name, **how: made.append(name))
    changed = handed(opened, {"push_to_hub": True, "hub_model_id": "me/mine", "hub_revision": "trial"})
    assert not arguments(changed).push_to_hub
    assert arguments(changed).hub_model_id is None
    for recipe in (opened.run.recipe, changed.run.recipe):
        prepare_upload(recipe)
        upload(recipe, changed.directory)
    assert made == ["create_repo", "create_branch", "upload_folder"]


def test_a_repository_that_cannot_be_made_is_said_before_training(opened):
    changed = handed(opened, {"push_to_hub": True, "hub_model_id": "me/mine"})
    with pytest.raises(OSError, match="push_to_hub: me/mine cannot be made on the hub"):
        prepare_upload(changed.run.recipe)


def test_a_revision_is_its_own_folder(tmp_path, monkeypatch):
    cached = tmp_path / "models--owner--name"
    for tag, commit in (("v1", "aaa"), ("v2", "bbb")):
        (cached / "snapshots" / commit).mkdir(parents=True)
        (cached / "snapshots" / commit / "config.json").write_text(tag)
        (cached / "refs").mkdir(exist_ok=True)
        (cached / "refs" / tag).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for tag, commit in (("v1", "aaa"), ("v2", "bbb")):
        assert at_revision("owner/name", tag) == str(cached / "snapshots" / commit)
    assert at_revision("owner/name", None) == "owner/name"
    with pytest.raises(OSError, match="owner/name at revision 'v3' cannot be had from"):
        at_revision("owner/name", "v3")
    with pytest.raises(ValueError, match="is a folder and has no revision 'v1': leave"):
        at_revision(str(cached), "v1")
