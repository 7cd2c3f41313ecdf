"""The page's function, without a browser: what changes on the page after each step."""

import builtins
import importlib.util
import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch
from gradio.utils import get_upload_folder
from panels import Blind, Broken, Pretender, bomb, loops_are_closed  # noqa: F401
from PIL import Image
from tiny_videos import write_clip

from switchkd import cli
from switchkd.chat import uploads
from switchkd.chat.panel import Turn
from switchkd.chat.web_page import Conversation, Page

pytestmark = pytest.mark.usefixtures("loops_are_closed", "unchecked_shapes")


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def shown(picture):
    """What a page of these members shows in the end: each card, the message and the scale."""

    def ask(members, question="Is it?", file=picture, *, video=None, tokens=8, temperature=0, before=None):
        page = Page(members, max_new_tokens=8)
        state = {}
        files = [None if file is None else str(file), None, None, None, None if video is None else str(video)]
        for change in page.ask(before or Conversation(), *files, question, tokens, temperature):
            # values alone: a browser that is slow to draw would lose what comes with another property
            assert not any(isinstance(value, dict) for value in change.values())
            state |= change
        ask.conversation = state.pop(page.conversation, None)
        ask.said = [state[card.said] for card in page.cards]
        assert set(state) == {page.wrong, page.scale} | {part for card in page.cards for part in card.parts}
        cards = [(c.answer.label, *(state[part] for part in (c.answer, c.overlay, c.note))) for c in page.cards]
        return cards, state[page.wrong], state[page.scale]

    return ask


def test_every_model_gets_the_question_and_a_card(shown, picture):
    members = [Pretender("one"), Pretender("two", "no", truncated=True, attention=[[0.1, 0.1]])]
    cards, wrong, scale = shown(members)
    assert [card[:2] for card in cards] == [("one", "yes"), ("two", "no")]
    assert [card[3] for card in cards] == [
        "0.12 s. 40% of its attention is on the picture; the brightest spot gets 1.5 times the average.",
        "0.12 s, cut before its end. 20% of its attention is on the picture; the brightest spot gets 1.0 times the average.",
    ]
    assert all(isinstance(card[2], Image.Image) for card in cards)
    assert cards[0][2].getpixel((0, 0)) != cards[1][2].getpixel((0, 0))
    assert wrong == ""
    assert "1.5 times the average; one scale for all models" in scale
    content = picture.read_bytes()
    assert [member.asked for member in members] == [
        [([content], (), "Is it?", 8, 0.0), ([content], (), "Is it?", "yes")],
        [([content], (), "Is it?", 8, 0.0), ([content], (), "Is it?", "no")],
    ]


def test_a_question_follows_up_on_what_each_model_said_about_the_same_pictures(shown, picture, tmp_path, caplog):
    members = [Pretender("one"), Broken("two", "no"), Pretender("three", "no")]
    shown(members)
    said = (Turn("Is it?", "yes"),), (), (Turn("Is it?", "no"),)
    assert shown.conversation == Conversation((str(picture), None), said)
    assert shown.said == ["you: Is it?"] * 3
    shown(members, "Why?", before=shown.conversation, tokens=3, temperature=0.5)
    assert members[2].asked[2] == ([picture.read_bytes()], (Turn("Is it?", "no"),), "Why?", 3, 0.5)
    assert shown.said == ["you: Is it?\nyes\nyou: Why?", "you: Why?", "you: Is it?\nno\nyou: Why?"]
    assert [len(turns) for turns in shown.conversation.turns] == [2, 0, 2]
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    shown(members, "And?", tmp_path / "b.png", before=shown.conversation)  # another picture is another conversation
    assert members[0].asked[4][1] == ()
    assert shown.conversation.turns == ((Turn("And?", "yes"),), (), (Turn("And?", "no"),))


def test_several_pictures_are_shown_to_a_model_together(picture, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    files = [str(picture), None, str(tmp_path / "b.png"), None, None]
    member = Pretender("one")
    page = Page([member], max_new_tokens=8)
    *changes, last = page.ask(Conversation(), *files, "Which?", 8, 0)
    assert member.asked[0][0] == [picture.read_bytes(), (tmp_path / "b.png").read_bytes()]
    note = "0.12 s. 40% and 40% of its attention is on these pictures; the brightest spot gets 1.5 times the average."
    assert last[page.cards[0].note] == note
    assert last[page.cards[0].overlay].size == (904, 448)
    texts = [change[page.cards[0].answer] for change in changes if page.cards[0].answer in change]
    assert texts == ["", "y", "yes"]  # as it grows


def test_a_video_is_shown_behind_the_pictures_and_no_map_is_drawn(shown, picture, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"moves")
    member = Pretender("one")
    for file, seen in ((picture, [picture.read_bytes(), b"moves"]), (None, [b"moves"])):
        cards, wrong, scale = shown([member], file=file, video=tmp_path / "a.mp4")
        note = "0.12 s. No map of its attention: it is shown on pictures alone, and there is a video."
        assert (cards, wrong, scale) == ([("one", "yes", None, note)], "", "")
        assert member.asked.pop() == (seen, (), "Is it?", 8, 0.0)
        assert member.asked == []
    before = shown.conversation
    shown([member], "Why?", file=None, video=tmp_path / "a.mp4", before=before)
    assert member.asked[0][1] == (Turn("Is it?", "yes"),)
    shown([member], "And?", before=before)  # without the video it is another conversation
    assert member.asked[1][1] == ()


def test_numbers_that_the_page_does_not_offer_are_refused(shown):
    member = Pretender("one")
    nan, inf = float("nan"), float("inf")
    for tokens, temperature, message in [(0, 0, "one token at least"), (nan, 0, "one token"), (inf, 0, "one token"),
                                         (8, -1, "from 0 to 2"), (8, nan, "from 0 to 2"), (8, 2.1, "from 0 to 2")]:  # fmt: skip
        assert message in shown([member], tokens=tokens, temperature=temperature)[1]
    assert member.asked == []


def test_too_little_memory_says_what_to_do(shown, monkeypatch, caplog):
    member = Pretender("one")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory")):
        monkeypatch.setattr(member, "ask", lambda *_, error=error, **__: (_ for _ in ()).throw(error))
        assert "not enough memory for that: ask about fewer or smaller pictures" in shown([member])[1]


def test_a_model_that_fails_does_not_keep_the_others_from_answering(shown, caplog):
    cards, wrong, scale = shown([Broken("one", "out of memory"), Blind("two", "no grid"), Pretender("three")])
    assert cards[0] == ("one", "", None, "")
    assert cards[1] == ("two", "no grid", None, "0.12 s. No map of its attention: no grid")
    assert cards[2][:2] == ("three", "yes")
    assert wrong == "one: RuntimeError: out of memory"
    assert "1.5 times" in scale
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.exc_info


@pytest.mark.parametrize(
    ("name", "question", "message"),
    [
        (None, "Is it?", "There is no picture or video yet: choose one, drop it or paste it."),
        ("a.png", " ", "There is no question yet."),
        ("bomb.png", "Is it?", "image 'bomb.png' declares 8000 x 8000 = 64,000,000 pixels, limit 50,000,000"),
        ("none.png", "Is it?", "No such file"),
    ],
)
def test_what_cannot_be_asked_is_a_message_and_no_model_is(shown, tmp_path, picture, name, question, message):
    bomb(tmp_path / "bomb.png")
    member = Pretender("one")
    cards, wrong, scale = shown([member], question, None if name is None else tmp_path / name)
    assert message in wrong
    assert cards == [("one", "", None, "")]
    assert scale == ""
    assert member.asked == []


def test_the_page_is_for_this_computer_and_reports_nothing_home(picture, monkeypatch):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    page = Page([Pretender("one")], max_new_tokens=8, pictures=[picture], question="Is it?")
    address = page.open()
    try:
        assert address.startswith("http://127.0.0.1:")
        assert page.blocks.server_name == "127.0.0.1"
        assert (page.blocks.analytics_enabled, page.blocks.run_history) == (False, False)
        assert not getattr(page.blocks, "share", False)
        with pytest.raises(OSError, match=f"port {page.blocks.server_port} is taken"):
            Page([Pretender("two")], max_new_tokens=8).open(page.blocks.server_port)
    finally:
        page.close()


@pytest.mark.slow
def test_uploads_lie_in_a_folder_of_this_process_alone():
    code = "from switchkd.chat import web_page; from gradio.utils import get_upload_folder; print(get_upload_folder())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert Path(get_upload_folder()) == uploads.UPLOADS
    assert other != get_upload_folder()
    assert not Path(other).exists()


def test_a_page_does_not_begin_with_what_is_no_picture(tmp_path):
    with pytest.raises(ValueError, match="8000 x 8000"):
        Page([Pretender("one")], max_new_tokens=8, pictures=[bomb(tmp_path / "bomb.png")])


def test_without_gradio_the_message_names_the_extra(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ["GRADIO_TEMP_DIR"])  # the module names another
    spec = importlib.util.spec_from_file_location("again", uploads.__file__)
    with pytest.raises(ImportError, match=r"needs gradio \(No module named 'gradio'\): pip install 'switchkd\[web\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_the_command_serves_its_models_until_it_is_interrupted(monkeypatch, picture, tmp_path, capsys):
    clip = write_clip(tmp_path / "a.mp4")
    seen = []

    class Interrupted:
        def wait(self):
            raise KeyboardInterrupt

    def open_page(page, port, host, password):
        values = [one.value for one in (*page.pictures, page.video)]
        assert [value and Path(value["path"]).suffix for value in values] == [".png", ".png", None, None, ".mp4"]
        assert Path(page.video.value["path"]).read_bytes() == clip.read_bytes()
        seen.append(([member.name for member in page.members], page.tokens.value, port, host, password))
        return "http://127.0.0.1:7999/"

    monkeypatch.setattr("switchkd.chat.panel.load_models", lambda models: [Pretender(name) for name in models])
    monkeypatch.setattr("switchkd.commands.chat.require_model", lambda path: None)
    monkeypatch.setattr("switchkd.commands.chat.Event", Interrupted)
    monkeypatch.setattr(Page, "open", open_page)
    monkeypatch.setattr(Page, "close", lambda page: seen.append("closed"))
    files = ["--image", str(picture), "--image", str(picture), "--video", str(clip)]
    flags = [*files, "--question", "Is it?", "--port", "7999"]
    assert cli.main(["chat", "--web", "a=one", "two", *flags]) == 0
    assert seen == [(["a=one", "two"], 256, 7999, None, None), "closed"]
    assert "http://127.0.0.1:7999/ (Ctrl-C ends)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "two"], "2 models cannot talk in the terminal: ask one, or all on a page with --web"),
        (["one", "--port", "7999"], "--port is that of the page: add --web"),
        (["one", "--host", "0.0.0.0"], "--host is that of the page: add --web"),
        ([], "chat with which model?"),
        (["one", "--web", *("--image", "a.png") * 5], "the page shows up to 4 images, and got 5 --image"),
        (["one", "--web", *("--video", "a.mp4") * 2], "the page shows up to 1 video, and got 2 --video"),
        (["one", "--web", "--video", "."], ". is a folder, and the page shows a video's file"),
    ],
)
def test_what_the_terminal_or_the_page_cannot_do_is_refused(arguments, message, capsys):
    assert cli.main(["chat", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_computers_are_never_let_in_without_a_password(monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("switchkd.chat.panel.load_models", lambda models: [Pretender(name) for name in models])
        patch.setattr("switchkd.commands.chat.require_model", lambda path: None)
        patch.setattr(Page, "open", None)
        patch.setattr("sys.stdin", io.StringIO(""))
        for password, message in [
            (None, "give it a password in the environment"),
            ("eleven char", "has 11 characters"),
        ]:
            if password is not None:
                patch.setenv("SWITCHKD_CHAT_PASSWORD", password)
            assert cli.main(["chat", "one", "--web", "--host", "0.0.0.0"]) == 1
            assert message in capsys.readouterr().err
    for password in (None, ""):
        with pytest.raises(ValueError, match="it needs a password"):
            Page([Pretender("one")], max_new_tokens=8).open(host="0.0.0.0", password=password)


#: A page of a pretended model that never ends an answer, or never ends loading: what the command does with signals.
PROGRAM = """
import sys, time
sys.path[:0] = {paths!r}
from panels import Pretender
from switchkd.chat import panel

class Endless(Pretender):
    def ask(self, *args, **kwargs):
        print("asked", flush=True)
        time.sleep(600)

def load(models):
    if {loading}:
        print("loading", flush=True)
        time.sleep(600)
    return [Endless(name) for name in models]

panel.load_models = load
from switchkd import cli
from switchkd.commands import chat
chat.require_model = lambda path: None
sys.exit(cli.main(["chat", "one", "--web"]))
"""


KINDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
#: Those of the normal suite.
SHORT = {("answering", signal.SIGTERM)}


@pytest.mark.long
@pytest.mark.parametrize(
    ("when", "kind"),
    [
        pytest.param(when, kind, marks=[] if (when, kind) in SHORT else pytest.mark.slow)
        for when in ("loading", "serving", "answering")
        for kind in KINDS
    ],
)
def test_every_signal_that_ends_the_page_leaves_no_upload(when, kind, tmp_path):
    paths = [str(Path(__file__).parents[1] / "lib"), str(Path(cli.__file__).parents[1])]
    code = PROGRAM.format(paths=paths, loading=when == "loading")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        try:
            if when == "loading":
                assert process.stdout.readline() == "loading\n"
            else:
                address = next(line for line in process.stderr if line.startswith("http")).split()[0]
                files = {"files": ("a.png", (Path(__file__).parents[1] / "lib" / "browser.py").read_bytes())}
                assert httpx.post(f"{address}gradio_api/upload", files=files, timeout=240).status_code == 200
                assert len(list(tmp_path.glob("switchkd-chat-*/*/a.png"))) == 1
            if when == "answering":
                Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
                with (tmp_path / "b.png").open("rb") as file:
                    sent = httpx.post(f"{address}gradio_api/upload", files={"files": file}, timeout=240).json()
                body = {
                    "data": [None, {"path": sent[0]}, None, None, None, None, "Is it?", 8, 0],
                    "fn_index": 0,
                    "session_hash": "s",
                }
                assert httpx.post(f"{address}gradio_api/queue/join", json=body, timeout=240).status_code == 200
                assert process.stdout.readline() == "asked\n"
            process.send_signal(kind)
            assert process.wait(120) == (128 + kind if when == "loading" else 0)
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert list(tmp_path.glob("switchkd-chat-*")) == []
