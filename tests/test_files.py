"""Files and folders are complete or not there at all."""

import fcntl
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from switchkd.files import copy_file, replace_folder, write_together


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_written_all_or_none(tmp_path):
    write_together({tmp_path / "new" / "a": "1", tmp_path / "b": "half \ud83d"})
    assert (tmp_path / "new" / "a").read_text() == "1"
    assert (tmp_path / "b").read_text() == "half \\ud83d"
    with pytest.raises(UnicodeEncodeError):
        write_together({tmp_path / "new" / "a": "2", tmp_path / "b": "\ud83d"}, errors="strict")
    assert (tmp_path / "new" / "a").read_text() == "1"
    assert (names(tmp_path), names(tmp_path / "new")) == (["b", "new"], ["a"])


def test_a_folder_takes_the_place_of_the_one_before_it_when_it_is_complete(tmp_path):
    target = tmp_path / "out" / "student"
    for text in ("old", "new"):
        with replace_folder(target) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / text).write_text(text)
            assert not target.exists() or names(target / "deep") == ["old"]
    assert names(target / "deep") == ["new"]
    assert names(target.parent) == ["student"]


def test_a_folder_that_was_not_finished_leaves_what_was_there(tmp_path):
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").touch()

    def fail():
        with replace_folder(target) as folder:
            (folder / "new").touch()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fail()
    assert (names(tmp_path), names(target)) == (["student"], ["old"])


def test_what_a_killed_process_left_is_cleared_or_restored(tmp_path):
    for leftover in (".student.partial", ".student.previous"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "file").touch()
    with replace_folder(tmp_path / "student") as folder:
        assert names(folder) == []
        assert names(tmp_path / "student") == ["file"]  # killed between moving the old one away and the new one in
    assert names(tmp_path) == ["student"]
    assert names(tmp_path / "student") == []


def test_files_of_a_new_folder_have_the_permissions_of_the_umask(tmp_path):
    """Also those of safetensors, which keeps its files to their owner."""
    for umask, expected in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        before = os.umask(umask)
        try:
            with replace_folder(tmp_path / "student") as folder:
                (folder / "inside").mkdir()
                save_file({"a": torch.zeros(1)}, folder / "inside" / "model.safetensors")
                (folder / "config.json").write_text("{}")
        finally:
            os.umask(before)
        files = [path for path in (tmp_path / "student").rglob("*") if path.is_file()]
        assert [path.stat().st_mode & 0o777 for path in files] == [expected] * 2


@pytest.mark.parametrize("shared", [False, True])
def test_a_copy_shares_blocks_where_it_can_and_is_no_link(tmp_path, monkeypatch, shared):
    """Whatever the file system here: a copy is written where it says that it cannot share, and nothing where it can."""
    source, target, written = tmp_path / "a", tmp_path / "b", []
    source.write_bytes(b"0123456789" * 1000)
    os.utime(source, (1, 2))
    plain_copy = shutil.copyfileobj

    def clone(new, request, old):
        if not shared:
            raise OSError("no such request")
        new.write(source.read_bytes())

    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.setattr(shutil, "copyfileobj", lambda *given: written.append(1) or plain_copy(*given))
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_mtime == 2
    assert written == ([] if shared else [1])
    with target.open("r+b") as file:  # in place
        file.write(b"x")
    assert source.read_bytes()[:1] == b"0"
    with pytest.raises(FileExistsError):
        copy_file(source, target)
