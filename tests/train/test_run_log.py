"""A run's log holds what was told and what libraries warned of, also those that keep their messages to themselves."""

import logging
import re
import warnings
from pathlib import Path

import pytest

from switchkd.console import say
from switchkd.train.run_log import kept_log


@pytest.fixture
def library():
    """As transformers logs: nothing goes up, and errors alone are shown."""
    logger = logging.getLogger("a_quiet_library")
    logger.propagate = False
    logger.setLevel(logging.ERROR)
    logger.addHandler(logging.StreamHandler())
    yield logger
    logger.propagate = True
    logger.handlers.clear()


def lines(file):
    written = file.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", line) for line in written)
    return [line[24:] for line in written]


def test_what_is_told_logged_and_warned_of_is_kept(tmp_path, library, capsys):
    file = tmp_path / "train.log"
    with pytest.warns(UserWarning, match="too old"), kept_log(file):  # noqa: PT031
        say("step 1 of 2")
        logging.getLogger("switchkd.some").warning("a row was skipped")
        library.warning("a field was ignored")
        library.info("chatter")
        warnings.warn("the driver is too old", UserWarning, stacklevel=1)
    say("behind it")
    library.error("behind it")
    told, logged, ignored, warned = lines(file)
    assert told == "switchkd.told INFO: step 1 of 2"
    assert logged == "switchkd.some WARNING: a row was skipped"
    assert ignored == "a_quiet_library WARNING: a field was ignored"
    assert re.fullmatch(r"warnings WARNING: .*test_run_log\.py:\d+: UserWarning: the driver is too old", warned)
    shown = capsys.readouterr().err
    assert "a field was ignored" not in shown  # the library was told to be quiet, and stays so
    assert shown.count("step 1 of 2") == 1
    assert (library.level, library.handlers[0].level) == (logging.ERROR, logging.NOTSET)


def test_a_run_that_goes_on_adds_to_its_log_and_an_error_is_its_last_line(tmp_path):
    file = tmp_path / "train.log"
    with kept_log(file):
        say("first")
    with pytest.raises(FloatingPointError), kept_log(file):
        raise FloatingPointError("step 3: the loss is not finite")
    assert lines(file) == [
        "switchkd.told INFO: first",
        "switchkd.told ERROR: ended by FloatingPointError: step 3: the loss is not finite",
    ]


def test_a_log_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path, capsys):
    with kept_log(tmp_path / "train.log"):
        (handler,) = (one for one in logging.getLogger().handlers if "train.log" in getattr(one, "baseFilename", ""))
        handler.stream.close()
        handler.stream = Path("/dev/full").open("w")  # noqa: SIM115
        say("one")
        say("two")
    assert re.fullmatch(
        r"one\n.*train\.log: nothing more is written there: .*No space left on device\ntwo\n", capsys.readouterr().err
    )


def test_other_processes_keep_none(tmp_path):
    with kept_log(None):
        say("one")
    assert list(tmp_path.iterdir()) == []


def test_a_handler_that_a_library_shares_with_others_hears_them_as_before(tmp_path, library):
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    program = logging.getLogger("switchkd.some")
    before = program.level
    program.setLevel(logging.INFO)
    for one in (logging.getLogger(), library):
        one.addHandler(handler)
    try:
        with kept_log(tmp_path / "train.log"):
            program.info("2 differences")
    finally:
        program.setLevel(before)
        logging.getLogger().removeHandler(handler)
    assert [record.getMessage() for record in heard] == ["2 differences"]
