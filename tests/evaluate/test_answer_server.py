"""Answers of a server: what it is sent, what is made of what it sends back, and what happens when it fails."""

import asyncio
import base64
import json
import ssl
import threading
from functools import partial
from io import BytesIO

import pytest
from answering_server import MODEL, Sent, answering, said
from PIL import Image
from run_files import write_data

from switchkd.cli import main
from switchkd.data.errors import DataError, SampleError
from switchkd.data.formats import load_rows
from switchkd.evaluate import answer_server as module
from switchkd.evaluate.answer_data import answer_data_by_server
from switchkd.evaluate.answer_server import KEY_VARIABLE, AnswerServer, ServerError


@pytest.fixture(scope="module")
def certificates():
    """Read once: reading them takes longer than a test."""
    return ssl.create_default_context()


@pytest.fixture(autouse=True)
def at_home(monkeypatch, certificates):
    """No proxy, no key, and no waiting."""
    monkeypatch.setattr(module.httpx2, "AsyncClient", partial(module.httpx2.AsyncClient, verify=certificates))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", KEY_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "WAITS_S", (0, 0))


@pytest.fixture
def data(tmp_path):
    """Five rows with a picture and two questions each."""
    write_data(tmp_path / "rows.json", 5)
    return tmp_path / "rows.json"


def ask(data, output, heard, **settings):
    server = AnswerServer(heard.url, MODEL, **{"max_new_tokens": 9, "at_once": 2, **settings})
    return answer_data_by_server(server, load_rows(str(data)), output)


def last(body):
    """The last message's text, without pictures."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def written(file):
    rows = map(json.loads, file.read_text().splitlines())
    return {row["id"]: [turn["value"] for turn in row["conversations"]] for row in rows}


def test_the_server_is_sent_the_very_bytes_and_its_own_earlier_answers(data, tmp_path):
    with answering(lambda body: said(f" {len(body['messages'])} messages\n")) as heard:
        done = ask(data, tmp_path / "new.jsonl", heard, temperature=0.5, seed=7)
    assert (done.rows, done.left_out) == (5, [])
    assert all(turns[1::2] == ["1 messages", "3 messages"] for turns in written(tmp_path / "new.jsonl").values())
    assert len(heard.bodies) == 10
    files = {
        base64.b64encode((tmp_path / "images" / f"rows-{number}.png").read_bytes()).decode() for number in range(5)
    }
    first = [body for body in heard.bodies if len(body["messages"]) == 1]
    assert {body["messages"][0]["content"][0]["image_url"]["url"] for body in first} == {
        f"data:image/png;base64,{content}" for content in files
    }
    for body in heard.bodies:
        assert {name: value for name, value in body.items() if name != "messages"} == {
            "model": MODEL, "max_tokens": 9, "temperature": 0.5, "seed": 7,
        }  # fmt: skip
        picture, text = body["messages"][0]["content"]
        assert (body["messages"][0]["role"], picture["type"], text) == (
            "user", "image_url", {"type": "text", "text": "What is in the image?"},
        )  # fmt: skip
        if len(body["messages"]) == 3:
            assert body["messages"][1] == {"role": "assistant", "content": "1 messages"}
            assert body["messages"][2]["role"] == "user"
            assert body["messages"][2]["content"].startswith("Is it ")


def test_pictures_of_several_kinds_stand_where_the_question_has_them_behind_a_system_message(tmp_path):
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / name)
    row = {
        "id": "two",
        "image": ["a.png", "b.jpg"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Is <image>\nlike <image>\n?"},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with answering(lambda body: said("No.")) as heard:
        ask(tmp_path / "rows.json", tmp_path / "new.jsonl", heard)
    system, user = heard.bodies[0]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    urls = [part["image_url"]["url"] for part in user["content"] if part["type"] == "image_url"]
    assert [url.partition(",")[0] for url in urls] == ["data:image/png;base64", "data:image/jpeg;base64"]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == [
        (tmp_path / name).read_bytes() for name in ("a.png", "b.jpg")
    ]
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text", "image_url", "text"]
    assert "seed" not in heard.bodies[0]


def test_rows_keep_their_order_whoever_answers_first_and_no_more_are_asked_at_once(data, tmp_path):
    second = threading.Event()

    def say(body):
        if "blue" in last(body) or "red" in last(body) or "green" in last(body):
            return said(last(body))
        if len(heard.bodies) == 1:  # the first request is answered after the second
            assert second.wait(30)
        else:
            second.set()
        return said("a colour")

    with answering(say) as heard:
        ask(data, tmp_path / "new.jsonl", heard)
    rows = json.loads(data.read_text())
    assert list(written(tmp_path / "new.jsonl")) == [row["id"] for row in rows]
    assert [turns[3] for turns in written(tmp_path / "new.jsonl").values()] == [
        row["conversations"][2]["value"] for row in rows
    ]
    assert heard.most_together == 2


def test_a_server_that_is_busy_or_cuts_the_connection_is_asked_again(data, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAITS_S", (0, 0, 0, 0))
    failures = iter([Sent(429, "slow down", (("Retry-After", "0"),)), Sent(503, ""), Sent(200, None), Sent(500, "oh")])

    def say(body):
        return next(failures, None) or said("red")

    with answering(say) as heard:
        done = ask(data, tmp_path / "new.jsonl", heard)
    assert (done.rows, len(heard.bodies)) == (5, 14)


def test_the_wait_that_the_server_asks_for_is_kept(data, tmp_path, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    monkeypatch.setattr(module, "WAITS_S", (1, 2, 60))
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    failures = iter([Sent(429, "", (("Retry-After", "7"),)), Sent(429, "", (("Retry-After", "9999"),))])
    with answering(lambda body: next(failures, None) or said("red")) as heard:
        ask(data, tmp_path / "new.jsonl", heard, at_once=1)
    assert waits == [7, 60]


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (Sent(500, "CUDA error"), r"500 Internal Server Error: 'CUDA error'; tried 3 times\. .* give the same command again"),
        (Sent(200, None), r"RemoteProtocolError: .*; tried 3 times"),
        (Sent(401, "the key sk-secret is wrong"), r"401 Unauthorized \(a key is read from \w+_KEY\): 'the key \*\*\* is wrong'"),
        (Sent(302, "", (("Location", "https://elsewhere.test/v1"),)), r"302 Found to https://elsewhere\.test/v1: give that address"),
        (Sent(200, "<html>Log in</html>"), r"sent what is no chat completion: '<html>Log in</html>'"),
        (Sent(200, '{"choices": []}'), "sent what is no chat completion"),
        (Sent(200, '{"choices": [{"message": {"content": 7}}]}'), "sent what is no chat completion"),
        (Sent(400, "no pictures, please"), r"has refused all of the first 2 rows; sample 'rows-\d': .*400 Bad Request: 'no pictures"),
    ],
)  # fmt: skip
def test_what_no_row_gets_past_ends_the_command_and_names_the_row(data, tmp_path, monkeypatch, sent, told):
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    with answering(lambda body: sent) as heard, pytest.raises(ServerError, match=told) as error:
        ask(data, tmp_path / "new.jsonl", heard)
    assert heard.url in str(error.value)
    assert "sample 'rows-" in str(error.value)
    assert "secret" not in str(error.value)
    assert set(heard.keys) == {"Bearer sk-secret"}
    assert not (tmp_path / "new.jsonl").exists()
    assert "secret" not in (tmp_path / ".new.jsonl.partial").read_text()
    assert "left out" not in (tmp_path / ".new.jsonl.partial").read_text()


def test_rows_that_are_refused_or_not_answered_are_left_out_and_named(data, tmp_path):
    (tmp_path / "images" / "rows-4.png").write_bytes(b"\x89PNG no picture")
    outcomes = {
        5: said("red"),
        1: Sent(400, '{"message": "too long"}'),
        2: said("and so on", "length"),
        3: said(None),
        4: said("\ud83d"),
    }
    for width in range(1, 5):  # no two pictures alike
        Image.new("RGB", (width, 8), "red").save(tmp_path / "images" / f"rows-{width - 1}.png")

    def say(body):
        content = body["messages"][0]["content"][0]["image_url"]["url"].partition(",")[2]
        return outcomes[Image.open(BytesIO(base64.b64decode(content))).width]

    rows = json.loads(data.read_text())
    rows.append({**rows[0], "id": "rows-5", "image": "images/rows-5.png"})
    data.write_text(json.dumps(rows))
    Image.new("RGB", (5, 8), "red").save(tmp_path / "images" / "rows-5.png")
    with answering(say) as heard:
        done = ask(data, tmp_path / "new.jsonl", heard, at_once=6)
    assert list(written(tmp_path / "new.jsonl")) == ["rows-5"]
    refused, unfinished, empty, half, broken = done.left_out
    assert refused.startswith(f"sample 'rows-0': {heard.url}/chat/completions: 400 Bad Request: ")
    assert "too long" in refused
    assert unfinished == "sample 'rows-1': an answer had not ended after 9 tokens"
    assert empty == "sample 'rows-2': an answer is empty"
    assert half == "sample 'rows-3': the answer holds half a Unicode character, which cannot be written"
    assert broken.startswith("sample 'rows-4': image '")
    with answering(lambda body: said("no", "content_filter")) as heard, pytest.raises(DataError) as error:
        ask(data, tmp_path / "other.jsonl", heard)
    assert "sample 'rows-0': the server ended the answer for another reason: finish_reason 'content_filter'" in str(
        error.value
    )


def test_a_video_is_not_left_unsaid():
    parts = [{"type": "video", "text": None}, {"type": "text", "text": "What happens?"}]
    row = {"id": "a", "images": [], "messages": [{"role": "user", "content": parts}]}
    with pytest.raises(SampleError, match="has a video, and a server is sent pictures alone"):
        asyncio.run(AnswerServer("http://a/v1", MODEL, max_new_tokens=1).answer(row))


@pytest.mark.parametrize("after", [2, 5, 8])
def test_a_start_that_failed_is_gone_on_with_to_the_same_bytes(data, tmp_path, after):
    def say(body):
        return said(f"{len(body['messages'])} {last(body)}")

    with answering(say) as heard:
        ask(data, tmp_path / "whole.jsonl", heard)
    with (
        answering(lambda body: say(body) if len(heard.bodies) <= after else Sent(500, "")) as heard,
        pytest.raises(ServerError),
    ):
        ask(data, tmp_path / "new.jsonl", heard, at_once=1)
    assert not (tmp_path / "new.jsonl").exists()
    with answering(say) as heard:
        ask(data, tmp_path / "new.jsonl", heard)
    assert len(heard.bodies) == 10 - after // 2 * 2
    assert (tmp_path / "new.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_do_not_go_on_with_answers(data, tmp_path):
    with answering(lambda body: said("red") if len(heard.bodies) < 4 else Sent(401, "")) as heard:
        with pytest.raises(ServerError):
            ask(data, tmp_path / "new.jsonl", heard, at_once=1)
        with pytest.raises(DataError, match=r"temperature: 0\.0 then, 0\.5 now; seed: None then, 3 now"):
            ask(data, tmp_path / "new.jsonl", heard, temperature=0.5, seed=3)


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (Sent(404, '{"detail": "Not Found"}'), "404 Not Found.*An address of this API mostly ends in /v1"),
        (Sent(200, "<html>"), "sent what is no list of models: '<html>'"),
        (Sent(200, '{"data": [{"id": "a"}, {"id": "b"}]}'), "has a, b, and no owner/teacher: name one of its own"),
        (None, r"no server answers there \(ConnectError: .*vllm serve owner/teacher"),
    ],
)
def test_a_server_without_the_model_is_said_before_a_row_is_asked(data, tmp_path, models, told):
    with answering(lambda body: said("red"), models or Sent(200, "")) as heard:
        if models is None:
            heard.url = "http://127.0.0.1:9/v1"  # where nobody listens
        with pytest.raises(ServerError, match=told):
            ask(data, tmp_path / "new.jsonl", heard)
    assert heard.bodies == []


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://a/v1", "http://", "http://a:99999/v1", "http://a:x/v1"])
def test_what_is_no_address_is_said(url):
    with pytest.raises(ValueError, match="is no address of a server"):
        AnswerServer(url, MODEL, max_new_tokens=1)


def test_secrets_have_their_place(monkeypatch):
    for url in ("http://me:sk-1@a/v1", "http://a/v1?key=sk-1"):
        with pytest.raises(ValueError, match=f"as {KEY_VARIABLE}") as error:
            AnswerServer(url, MODEL, max_new_tokens=1)
        assert "sk-1" not in str(error.value)
    monkeypatch.setenv(KEY_VARIABLE, "sk-1\nX-Other: 1")
    with pytest.raises(ValueError, match="holds something that is no key") as error:
        AnswerServer("http://a/v1", MODEL, max_new_tokens=1)
    assert "sk-1" not in str(error.value)


def test_the_command_asks_a_server(data, tmp_path, capsys):
    output = tmp_path / "new.jsonl"
    with answering(lambda body: said("red")) as heard:
        command = ["data", "answer", str(data), "--server", heard.url, "--teacher", MODEL, "-o", str(output)]
        assert main([*command, "--temperature", "-1"]) == 1
        assert main([*command, "--max-new-tokens", "11", "--temperature", "0.25", "--seed", "3"]) == 0
    assert f"5 rows with the answers of {MODEL} in {output}, 0 left out" in capsys.readouterr().err
    assert heard.bodies[0].items() >= {"max_tokens": 11, "temperature": 0.25, "seed": 3}.items()
    command = ["data", "answer", str(data), "--teacher", "runs/none", "-o", str(output), "--seed", "1"]
    assert main(command) == 1
    assert "--temperature and --seed are for --server" in capsys.readouterr().err
