import logging

from rich.console import Console

from switchkd import console
from switchkd.commands import verb


def test_plain_lines_are_few_and_tell_rate_and_time_left(capsys, monkeypatch):
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    assert list(console.progress(range(20), "reading", 20)) == list(range(20))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 3 of 20 (0.5/s, 34 s left)"
    assert lines[-1] == "reading: 20 of 20 (0.5/s)"
    assert len(lines) <= 10


def test_where_nobody_knows_the_total_there_is_no_time_left(capsys, monkeypatch):
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    assert len(list(console.progress(range(7), "reading", None))) == 7
    assert capsys.readouterr().err.splitlines() == ["reading: 3 (0.5/s)", "reading: 6 (0.5/s)"]


def test_a_quick_loop_says_only_that_it_is_done(capsys):
    list(console.progress(range(1000), "reading", 1000))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reading: 1,000 of 1,000 (")


def test_quiet_shows_warnings_and_goes_through_all_the_same(monkeypatch, capsys, caplog):
    monkeypatch.setattr(console, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100))
    monkeypatch.setattr(console.TOLD, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "switchkd.told")
    handler = verb._Stderr()
    with console.quiet():
        assert list(console.progress([1, 2, 3], "reading", 3)) == [1, 2, 3]
        console.say("one")
        console.warn("two")
        for level in (logging.INFO, logging.WARNING):
            handler.handle(logging.LogRecord("switchkd", level, "", 0, "%s", (logging.getLevelName(level),), None))
        assert console.is_quiet()
    assert capsys.readouterr().err.splitlines() == ["two", "WARNING"]
    console.say("three")
    assert capsys.readouterr().err == "three\n"
    assert caplog.messages == ["one", "two", "three"]


def test_a_terminal_shows_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(console, "Console", lambda stderr: Console(stderr=stderr, force_terminal=True, width=100))
    assert list(console.progress([1, 2, 3], "reading", 3)) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().err
