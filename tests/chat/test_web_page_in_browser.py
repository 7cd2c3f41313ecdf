"""The page in a browser: what is on it, where it asks for it, and that nothing on it is more than text."""

import inspect
import itertools
import re
import socket
import threading
import time

import pytest
from browser import LAPTOP, PHONE, visit
from hostile import ELEMENTS, HOSTILE
from panels import Blind, Broken, Pretender, bomb, loops_are_closed  # noqa: F401
from PIL import Image
from tiny_videos import write_clip

from switchkd import world
from switchkd.chat.panel import Reply, load_models
from switchkd.chat.web_page import Page
from switchkd.evaluate.generate import answers

pytestmark = [
    pytest.mark.browser,
    pytest.mark.usefixtures("loops_are_closed", "unchecked_shapes"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's
]

QUESTION = "Where is the circle, top, middle or bottom?"


@pytest.fixture
def picture(tmp_path):
    world.write(tmp_path / "data", train=1, validation=1, test=1, seed=0)
    return next((tmp_path / "data").rglob("*.png"))


@pytest.fixture
def serve(monkeypatch):
    # what checks shapes hides from gradio that `ask` is a generator
    monkeypatch.setattr(Page, "ask", inspect.unwrap(Page.ask))
    pages = []

    def open_page(members):
        pages.append(Page(members, max_new_tokens=8))
        with socket.socket() as any_port:  # one that no test beside this one asks for
            any_port.bind(("127.0.0.1", 0))
            port = any_port.getsockname()[1]
        return pages[-1].open(port)

    yield open_page
    for page in pages:
        page.close()


def ask(page, picture, question):
    page.locator("input[type=file]").first.set_input_files(picture)
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


@pytest.mark.long
def test_three_models_answer_and_show_where_they_look(browser, serve, picture, tmp_path):
    world.write_student(tmp_path / "student")
    teacher, student = str(world.teacher_path()), str(tmp_path / "student")
    members = load_models([f"teacher={teacher}", f"SFT={student}", f"Switch-KD={student}"])
    address = serve(members)
    content = [{"type": "image", "text": None}, {"type": "text", "text": QUESTION}]
    row = {
        "id": "0",
        "images": [{"bytes": None, "path": str(picture)}],
        "messages": [{"role": "user", "content": content}],
    }
    for size in (LAPTOP, PHONE):
        with visit(browser, address, size) as seen:
            ask(seen.page, picture, QUESTION)
            seen.page.get_by_text("one scale for all models").wait_for()
            for member in members:
                (expected,) = answers(member.model, member.processor, [row], max_new_tokens=8)
                assert (
                    seen.page.locator(".answer", has_text=member.name).locator("textarea").input_value()
                    == expected.text
                )
            seen.page.wait_for_function(
                "[...document.images].length == 4 && [...document.images].every(i => i.naturalWidth > 1)"
            )
            widths = seen.page.evaluate("[...document.images].map(i => i.naturalWidth)")
            assert sorted(widths) == [48, 448, 448, 448]
            assert seen.page.locator(".answer button").count() == 3  # each is copied by its own
            seen.page.wait_for_function(
                "[...document.querySelectorAll('.note textarea')].filter(n => n.value.includes('average')).length == 3"
            )
            notes = [box.input_value() for box in seen.page.locator(".note textarea").all()]
            pattern = (
                r"\d+\.\d\d s(, cut before its end)?\. "
                r"\d+% of its attention is on the picture; the brightest spot gets \d+\.\d times the average\."
            )
            assert len(notes) == 3
            assert all(re.fullmatch(pattern, note) for note in notes)
            assert seen.page.get_by_label("This did not work").is_hidden()
            assert seen.elsewhere(address) == seen.complaints == []
            assert seen.sideways() == 0


def settled(page, selector, texts):
    """Wait until the elements hold these texts, in order; a page that never does fails the test."""
    page.wait_for_function(
        """([selector, texts]) => {
            const found = [...document.querySelectorAll(selector)].map(e => (e.value ?? e.textContent).trim());
            return JSON.stringify(found) == JSON.stringify(texts.map(text => text.trim()));
        }""",
        arg=[selector, texts],
    )


#: What a page's models are called and say: in three members all payloads, one behind the other; in pages of ten, each by itself.
TEXTS = {
    "all at once": [" ".join(HOSTILE[kind::3]) for kind in range(3)],
    **{str(start): HOSTILE[start : start + 10] for start in range(0, len(HOSTILE), 10)},
}


@pytest.mark.long
@pytest.mark.parametrize(
    "texts", [pytest.param(name, marks=[] if name == "all at once" else pytest.mark.slow) for name in TEXTS]
)
def test_hostile_names_answers_and_messages_stay_text(browser, serve, picture, caplog, texts):
    kinds = (Pretender, Broken, Blind)
    members = [kinds[number % 3](text, text) for number, text in enumerate(TEXTS[texts])]
    address = serve(members)
    with visit(browser, address) as seen:
        if texts == "all at once":  # a browser that draws slower than the answers come shows them all the same
            seen.page.context.new_cdp_session(seen.page).send("Emulation.setCPUThrottlingRate", {"rate": 4})
        scripts = seen.page.evaluate("document.scripts.length")
        ask(seen.page, picture, TEXTS[texts][0])
        seen.page.get_by_text("one scale for all models").wait_for()
        settled(seen.page, ".answer textarea", ["" if isinstance(m, Broken) else m.text for m in members])
        settled(seen.page, ".answer label", [m.name for m in members])
        seen.page.wait_for_function(
            "[...document.querySelectorAll('.note textarea')].every(note => note.value != 'answering …')"
        )
        notes = [box.input_value() for box in seen.page.locator(".note textarea").all()]
        assert [f"0.12 s. No map of its attention: {m.text}" for m in members if isinstance(m, Blind)] == notes[2::3]
        (wrong,) = [box.input_value() for box in seen.page.locator(".wrong textarea").all()]
        assert all(f"{m.name}: RuntimeError: {m.text}" in wrong for m in members if isinstance(m, Broken))
        assert seen.page.evaluate("document.scripts.length") == scripts
        assert seen.page.evaluate(ELEMENTS) == 0
        assert seen.page.evaluate("window.hostile") is None
        assert seen.elsewhere(address) == seen.complaints == []


@pytest.mark.long
def test_what_cannot_be_asked_is_a_message_on_the_page(browser, serve, tmp_path):
    files = {
        "bomb.png": (bomb, "image 'bomb.png' declares 8000 x 8000 = 64,000,000 pixels, limit 50,000,000"),
        "text.png": (
            lambda file: file.write_text("<script>window.hostile=1</script>"),
            "image 'text.png' cannot be read",
        ),
    }
    with visit(browser, serve([Pretender("one")])) as seen:
        seen.page.get_by_role("button", name="Ask").click()
        wrong = seen.page.get_by_label("This did not work")
        wrong.wait_for()
        assert wrong.input_value() == "There is no picture or video yet: choose one, drop it or paste it."
        for name, (write, message) in files.items():
            write(tmp_path / name)
            ask(seen.page, tmp_path / name, "Is it?")
            seen.page.wait_for_function(
                "m => document.querySelector('.wrong textarea')?.value.startsWith(m)", arg=message
            )
        Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
        ask(seen.page, tmp_path / "good.png", "Is it?")
        wrong.wait_for(state="hidden")
        seen.page.get_by_text("one scale for all models").wait_for()
        # a follow-up, by one of the examples
        said = "document.querySelector('.said textarea')?.value"
        seen.page.get_by_role("button", name="Read the text.").click()
        seen.page.get_by_role("button", name="Ask").click()
        seen.page.wait_for_function(f"{said} == 'you: Is it?\\nyes\\nyou: Read the text.'")
        # begun anew, nothing of it is left; and it is no follow-up
        seen.page.get_by_text("one scale for all models").wait_for()
        seen.page.get_by_role("button", name="Begin anew").click()
        seen.page.wait_for_function(f"{said} == ''")
        assert [box.input_value() for box in seen.page.locator(".answer textarea").all()] == [""]
        seen.page.get_by_role("button", name="Ask").click()
        seen.page.wait_for_function(f"{said} == 'you: Read the text.'")
        seen.page.get_by_text("one scale for all models").wait_for()
        # and another picture leaves nothing either
        Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
        seen.page.locator("input[type=file]").first.set_input_files(tmp_path / "other.png")
        seen.page.wait_for_function(f"{said} == ''")
        assert "Traceback" not in seen.page.content()
        assert seen.page.evaluate("window.hostile") is None


@pytest.mark.long
def test_a_video_plays_on_the_page_and_is_asked_about(browser, serve, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", "libx264", 96, 128)
    member = Pretender("one")
    address = serve([member])
    with visit(browser, address) as seen:
        seen.page.get_by_text("A video").click()
        seen.page.locator("input[type=file][accept*=video]").set_input_files(clip)
        seen.page.wait_for_function("document.querySelector('video')?.readyState >= 2")
        assert seen.page.evaluate("document.querySelector('video').duration") == 3
        trim = seen.page.get_by_role("button", name="Trim", include_hidden=True)  # would load a program from elsewhere
        assert (trim.count(), trim.is_hidden()) == (1, True)
        seen.page.get_by_label("Question").fill("What moves?")
        seen.page.get_by_role("button", name="Ask").click()
        seen.page.wait_for_function("document.querySelector('.note textarea')?.value.includes('there is a video')")
        assert [box.input_value() for box in seen.page.locator(".answer textarea").all()] == ["yes"]
        assert seen.elsewhere(address) == seen.complaints == []
        assert seen.sideways() == 0
    assert [asked[0] for asked in member.asked] == [[clip.read_bytes()]]


class Endless(Pretender):
    """One that goes on and on, until nobody asks any more."""

    closed = threading.Event()

    def ask(self, *_, **__):
        try:
            for count in itertools.count():
                yield Reply("on and on" + " and on" * count, True, 0.1)
                time.sleep(0.2)  # the page is still between two of them, and can be clicked
        finally:
            self.closed.set()


@pytest.mark.long
def test_an_answer_that_is_on_its_way_is_stopped_and_no_part_of_the_conversation(browser, serve, tmp_path):
    members = [Endless("one"), Pretender("two")]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with visit(browser, serve(members)) as seen:
        ask(seen.page, tmp_path / "a.png", "Is it?")
        seen.page.wait_for_function("document.querySelector('.answer textarea').value.startsWith('on and on and on')")
        seen.page.get_by_role("button", name="Stop").click()
        settled(seen.page, ".note textarea", ["Stopped: this question is no part of the conversation.", ""])
        assert members[0].closed.wait(10)
        assert members[1].asked == []
        seen.page.get_by_role("button", name="Ask").click()  # and what is asked next is answered
        settled(seen.page, ".said textarea", ["you: Is it?", "you: Is it?"])
        seen.page.wait_for_function("document.querySelector('.answer textarea').value.startsWith('on and on and on')")
