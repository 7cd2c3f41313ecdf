"""Templates that would take hours or gigabytes end at a limit, whichever thread or process asks."""

import os
import signal
import threading

import psutil
import pytest

from switchkd import rendering

ORDINARY = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
MESSAGES = [[{"role": "user", "content": "What?"}]]
#: Of time: each would run for minutes or more.
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros that call themselves twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "one operation": "{{ messages | length ** (10 ** 9) + 3 ** (10 ** 9) }}",
    "one operation on what is given": "{{ (messages | length + 2) ** (10 ** 8) }}",
    "while it is read": "{{ 3 ** (10 ** 8) }}",
}
#: Of memory, within milliseconds.
GROWING = {
    "doubled text": "{% set x = namespace(t='a') %}{% for i in range(60) %}{% set x.t = x.t ~ x.t %}{% endfor %}{{ x.t }}",
    "repeated": "{{ messages[0]['role'] * 10 ** 10 }}",
    "repeated while it is read": "{{ 'a' * 10 ** 10 }}",
    "centred": "{{ messages[0]['role'] | center(10 ** 10) }}",
    "formatted": "{{ '%9999999999d' % (messages | length) }}",
    "a list": "{{ [messages] * 10 ** 9 }}",
    "a list of lists": "{% set x = namespace(l=[1]) %}{% for i in range(60) %}{% set x.l = [x.l, x.l] %}{% endfor %}{{ x.l }}",
    "in a method": "{{ messages[0]['role'].ljust(10 ** 10) }}",
    "much written": "{% for i in range(90) %}{{ messages[0]['role'].ljust(10 ** 6) }}{% endfor %}",
    "a macro without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A fifth of a second is the limit, and nothing is known of any template."""
    monkeypatch.setattr(rendering, "MOST_SECONDS", 0.2)
    monkeypatch.setattr(rendering, "_refused", {})
    rendering._forget()
    yield
    rendering._forget()


def render(template: str, **arguments: object) -> str:
    return rendering.render(template, **{"conversations": MESSAGES, **arguments})


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_never_ends_is_ended(kind):
    with pytest.raises(rendering.LimitError, match=r"takes more than 0\.2 seconds of computing"):
        render(ENDLESS[kind])
    assert render(ORDINARY) == "<user>What?"


@pytest.mark.parametrize("kind", GROWING)
def test_what_grows_without_bounds_is_ended(kind):
    with pytest.raises(
        rendering.LimitError,
        match=r"takes more than (512 MiB of memory|0\.2 seconds)|writes 90,000,0.* characters|calls itself without an end",
    ):
        render(GROWING[kind])
    assert render(ORDINARY) == "<user>What?"


def test_a_long_range_is_refused_by_jinja():
    with pytest.raises(rendering.TemplateError, match="MAX_RANGE"):
        render("{% for i in range(10 ** 9) %}{% endfor %}")


def test_reading_is_limited_too():
    with pytest.raises(rendering.LimitError):
        rendering.check(ENDLESS["while it is read"])


def test_a_template_that_took_too_much_is_not_tried_again():
    for _ in range(2):
        with pytest.raises(rendering.LimitError):
            render(ENDLESS["nested loops"])
    assert list(rendering._refused) == [ENDLESS["nested loops"]]
    assert rendering._renderer is not None
    used = rendering._renderer._process
    with pytest.raises(rendering.LimitError):
        render(ENDLESS["nested loops"], conversations=[[]])
    assert rendering._renderer._process == used


def test_other_errors_are_told_with_their_words():
    for template, words in [
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages.nothing.nothing }}", "no attribute 'nothing'"),
        ("{{ '' | nosuchfilter }}", "line 1: No filter named"),
    ]:
        with pytest.raises(rendering.TemplateError, match=words) as caught:
            render(template)
        assert caught.type is rendering.TemplateError


def test_threads_get_their_own_texts():
    texts: dict[int, list[str]] = {}

    def ask(number: int) -> None:
        said = [[{"role": "user", "content": str(number)}]]
        texts[number] = [render(ORDINARY, conversations=said) for _ in range(50)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: [f"<user>{number}"] * 50 for number in range(4)}


def test_an_interrupted_question_leaves_no_answer_for_the_next(monkeypatch):
    render(ORDINARY)

    def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(rendering._Renderer, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render("another")
    assert render(ORDINARY) == "<user>What?"


def test_a_process_that_was_killed_is_replaced():
    render(ORDINARY)
    assert rendering._renderer is not None
    killed = rendering._renderer._process
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert render(ORDINARY) == "<user>What?"


def test_a_process_that_does_not_answer_is_replaced_once(monkeypatch):
    monkeypatch.setattr(rendering, "MOST_WAITING_SECONDS", 0.5)
    render(ORDINARY)
    assert rendering._renderer is not None
    silent = rendering._renderer._process
    os.kill(silent, signal.SIGSTOP)
    assert render(ORDINARY) == "<user>What?"
    assert not psutil.pid_exists(silent)

    def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    rendering._forget()
    monkeypatch.setattr(rendering, "_reply", stopped)
    with pytest.raises(rendering.TemplateError, match=r"did not answer within 0\.5 seconds"):
        render(ORDINARY)
    assert rendering._renderer is None
    assert rendering._refused == {}


def test_a_forked_process_has_its_own_and_none_outlives_who_asks():
    """As data workers do; at SIGTERM of the whole group the renderer stays for the last checkpoint, and ends with who asks."""
    render(ORDINARY)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = render(ORDINARY)
        assert rendering._renderer is not None
        os.write(writer, f"{rendering._renderer._process} {text}".encode())
        signal.pause()
        os._exit(0)
    process, text = os.read(reader, 100).decode().split(" ")
    assert text == "<user>What?"
    assert rendering._renderer is not None
    assert int(process) != rendering._renderer._process
    own = psutil.Process(int(process))
    own.terminate()
    assert own.is_running()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    own.wait(60)
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_the_process_holds_no_file_of_who_asks(tmp_path):
    with (tmp_path / "held").open("w"):
        rendering._forget()
        render(ORDINARY)
        assert rendering._renderer is not None
        held = psutil.Process(rendering._renderer._process)
        assert [file.path for file in held.open_files() if file.path != os.devnull] == []
        assert held.num_fds() == 5  # three to nowhere, two pipes
