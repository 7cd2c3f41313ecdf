import io

import pytest
from PIL import Image

from switchkd import cli
from switchkd.chat import conversation as chat
from switchkd.chat.conversation import Conversation, talk
from switchkd.data.errors import SampleError
from switchkd.evaluate.generate import Answer


@pytest.fixture
def asked(monkeypatch):
    """The rows a model was asked; it answers `answer 1`, `answer 2` …, the second with a control sequence in it."""
    rows = []

    def pretend(model, processor, conversations, *, max_new_tokens):
        rows.extend(conversations)
        return [Answer(f"answer {len(rows)}" + "\x1b[2J" * (len(rows) == 2), False)]

    monkeypatch.setattr(chat, "answers", pretend)
    return rows


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a b.png")
    return tmp_path / "a b.png"


@pytest.fixture
def conversation(asked, picture, unchecked_shapes):
    conversation = Conversation(None, None, max_new_tokens=8)
    conversation.show([picture])
    return conversation


def parts(row):
    return [(message["role"], [part["type"] for part in message["content"]]) for message in row["messages"]]


def test_a_question_follows_up_on_those_before_it(conversation, asked, picture):
    assert conversation.ask("What?") == "answer 1"
    conversation.ask("And?")
    assert parts(asked[0]) == [("user", ["image", "text"])]
    assert parts(asked[1]) == [("user", ["image", "text"]), ("assistant", ["text"]), ("user", ["text"])]
    assert asked[1]["images"] == [{"bytes": None, "path": str(picture)}]
    conversation.show([picture])
    conversation.ask("Again?")
    assert parts(asked[2]) == [("user", ["image", "text"])]


def test_several_images_stand_before_the_first_question_in_their_order(conversation, asked, picture):
    other = picture.with_name("b.png")
    Image.new("RGB", (8, 8)).save(other)
    conversation.show([other, picture, other])
    conversation.ask("Which differs?")
    conversation.ask("And?")
    assert parts(asked[0]) == [("user", ["image", "image", "image", "text"])]
    assert asked[0]["images"] == [{"bytes": None, "path": str(path)} for path in (other, picture, other)]
    assert asked[1]["images"] == asked[0]["images"]


def test_an_answer_does_not_steer_the_terminal(conversation):
    conversation.ask("What?")
    assert conversation.ask("And?") == "answer 2[2J"


def test_what_is_no_image_leaves_the_conversation_as_it_was(conversation, picture, tmp_path):
    conversation.ask("What?")
    with pytest.raises(SampleError, match="missing"):
        conversation.show([picture, tmp_path / "none.png"])
    assert len(conversation.messages) == 2
    assert len(conversation.images) == 1


def test_a_talk_in_the_terminal(conversation, asked, picture, monkeypatch, capsys):
    typed = ["What?", "", f"/image {picture.parent}/none.png", f"/image {picture}", "Now?", "/help", "/quit", "unread"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(typed)))
    talk(conversation)
    printed = capsys.readouterr().out
    for phrase in ["model: answer 1", "is missing", "sees this image now", "model: answer 2", "/help: unknown"]:
        assert phrase in " ".join(printed.split())
    assert len(asked) == 2


def test_a_talk_ends_with_its_input(conversation, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert talk(conversation) is None


def test_the_command_shows_every_image_that_it_is_given(asked, picture, unchecked_shapes, monkeypatch, capsys):
    other = picture.with_name("b.png")
    Image.new("RGB", (8, 8)).save(other)
    monkeypatch.setattr("switchkd.evaluate.generate.load", lambda path: (None, None))
    monkeypatch.setattr("switchkd.commands.chat.require_model", lambda path: None)
    images = ["--image", str(picture), "--image", str(other)]
    assert cli.main(["chat", "MODEL", *images, "--question", "Which?"]) == 0
    assert [image["path"] for image in asked[0]["images"]] == [str(picture), str(other)]
    assert parts(asked[0]) == [("user", ["image", "image", "text"])]
    assert cli.main(["chat", "MODEL", "--image", str(picture), "--image", "none.png", "--question", "Which?"]) == 1
    assert "none.png: no such file or folder" in capsys.readouterr().err
