import json
import logging
import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    monkeypatch.setattr(
        console, "Console", lambda stderr, width: Console(stderr=stderr, force_terminal=True, width=100)
    )
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
    monkeypatch.setattr(
        console, "Console", lambda stderr, width: Console(stderr=stderr, force_terminal=True, width=100)
    )
    assert list(console.progress([1, 2, 3], "reading", 3)) == [1, 2, 3]
    assert "3/3" in capsys.readouterr().err


#: Clears the screen, sets the clipboard and the title, rings, and the same by one character.
STEERING = "a\x1b[2Jb\x1b]52;c;cm0=\x07c\x9b2Jd\re"
PLAIN = "a[2Jb]52;c;cm0=c2Jde"


def test_texts_of_others_do_not_steer_the_terminal(capsys, monkeypatch, caplog):
    monkeypatch.setattr(console.TOLD, "handlers", [caplog.handler])
    caplog.set_level(logging.INFO, "switchkd.told")
    console.say(STEERING)
    console.warn(f"two\n\t{STEERING}")
    handler = verb._Stderr()
    handler.handle(logging.LogRecord("switchkd", logging.WARNING, "", 0, "%s", (STEERING,), None))
    verb.fail(STEERING, 1)
    assert capsys.readouterr().err == f"{PLAIN}\ntwo\n\t{PLAIN}\n{PLAIN}\nswitchkd: {PLAIN.replace('de', 'd e')}\n"
    assert caplog.messages[0] == PLAIN
    verb.print_json({"x": STEERING})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"x": STEERING}
    assert printed == console.harmless(printed)


def test_tables_keep_their_colours_and_nothing_else_that_steers(capsys, monkeypatch):
    monkeypatch.setattr(
        console, "Console", lambda stderr, width: Console(force_terminal=True, color_system="standard", width=60)
    )
    table = Table(title=Text(STEERING))
    table.add_column(Text("kind"))
    table.add_row(Text(STEERING, "red"))
    console.terminal(width=60).print(table, Text(STEERING, "bold"))
    shown = capsys.readouterr().out
    assert f"\x1b[31m{PLAIN}" in shown
    assert f"\x1b[1m{PLAIN}" in shown
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == console.harmless(re.sub(r"\x1b\[[\d;]*m", "", shown))
