"""The page as a stranger's program meets it, over HTTP on a server that was started: nothing opens but what was uploaded."""

import base64
import inspect
import io
import json
import os
import socket
from itertools import count
from pathlib import Path

import httpx
import numpy as np
import pytest
from panels import Pretender, loops_are_closed  # noqa: F401
from PIL import Image

from switchkd.chat.uploads import UPLOADS
from switchkd.chat.web_page import Page

pytestmark = [
    pytest.mark.usefixtures("loops_are_closed", "unchecked_shapes"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),  # gradio's
]
META = {"meta": {"_type": "gradio.FileData"}}
PASSWORD = "correct horse battery"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(Page, "ask", inspect.unwrap(Page.ask))  # what checks shapes hides that it is a generator
    opened = []

    def start(**options):
        member = Pretender("one")
        page = Page([member], max_new_tokens=8)
        with socket.socket() as any_port:
            any_port.bind(("127.0.0.1", 0))
            port = any_port.getsockname()[1]
        page.open(port, **options)
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=240)
        opened.extend([client, page])
        return client, member, page

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def secret(tmp_path):
    """A picture that nobody uploaded."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "secret.png")
    return tmp_path / "secret.png"


def upload(client, name="a.png", **options):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="PNG")
    sent = client.post("/gradio_api/upload", files={"files": (name, file.getvalue())}, **options)
    assert sent.status_code == 200
    return sent.json()[0]


#: Each question has a session of its own.
SESSIONS = count()


def ask(
    client, picture, *, place=0, video=None, state=None, question="What?", tokens=8, temperature=0, function=0, **more
):
    """What the page says in the end, as the text of its last event; `place` is that of the picture among the four."""
    session = f"session{next(SESSIONS)}"
    pictures = [picture if place == number else None for number in range(4)]
    data = [state, *pictures, video, question, tokens, temperature]
    body = {"data": data, "fn_index": function, "session_hash": session, **more}
    sent = client.post("/gradio_api/queue/join", json=body)
    if sent.status_code != 200:
        return f"{sent.status_code}"
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        for line in events.iter_lines():
            event = json.loads(line.removeprefix("data: ")) if line else {}
            if event.get("msg") in ("process_completed", "unexpected_error"):
                return json.dumps(event.get("output", event.get("message")))
    raise AssertionError("no answer")


def test_a_picture_that_was_uploaded_is_answered_with_and_without_meta(serve):
    client, member, _ = serve()
    path = upload(client)
    for picture in ({"path": path}, {"path": path, **META}, {"path": path, "url": "http://elsewhere.invalid/"}):
        assert "1.5 times the average" in ask(client, picture)
    assert len(member.asked) == 6
    assert "there is a video" in ask(client, None, video={"path": upload(client, "a.mp4"), **META})
    assert len(member.asked[6][0]) == 1


@pytest.mark.long
def test_no_path_that_a_request_names_is_opened_and_none_is_told_from_another(serve, secret, tmp_path, monkeypatch):
    client, member, _ = serve()
    path = upload(client)
    folder = os.path.dirname(path)
    os.symlink(secret, os.path.join(folder, "link.png"))
    os.symlink(tmp_path, os.path.join(folder, "out"))
    monkeypatch.chdir(tmp_path)
    outside = [
        str(secret),
        "secret.png",
        f"{folder}/../../{os.path.relpath(secret, '/tmp')}",
        f"{folder}/../../../../../../../..{secret}",
        f"{folder}/link.png",
        f"{folder}/out/secret.png",
        f"/proc/self/root{secret}",
        f"/proc/self/cwd/{secret.name}",
        f"/{secret}",
        "/etc/passwd",
        "/etc/none",
        "/dev/zero",
        "/proc/self/environ",
        str(tmp_path / "none.png"),
        str(tmp_path),
        str(UPLOADS),
        folder,
        f"{UPLOADS}-other/a.png",
        f"{folder}/none.png",
        f"{path}\0.png",
        f"file://{secret}",
        f"file://{path}",
        "http://127.0.0.1:9/x.png",
        "https://elsewhere.invalid/x.png",
        "data:image/png;base64,AAAA",
        f"/gradio_api/file={secret}",
        f"/gradio_api/stream/{secret}",
        "~/x.png",
        "",
    ]
    before = {str(file) for file in UPLOADS.rglob("*")}
    said = set()
    for name in outside:
        for more in ({}, META, {"url": path}, {**META, "url": f"/gradio_api/file={path}", "is_stream": True}):
            said.add(ask(client, {"path": name, **more}))
    for place in (1, 2, 3):
        for name in (str(secret), f"{folder}/link.png", "/etc/none", "http://127.0.0.1:9/x.png"):
            said.add(ask(client, {"path": name, **META}, place=place))
    for name in outside:
        said.add(ask(client, None, video={"path": name, **META}))
    said.add(ask(client, {"path": str(secret)}, trigger_id=5, event_data={"path": path}, simple_format=True))
    for name in (f"{folder}/" + "a" * 5000, str(tmp_path / ("a" * 5000))):  # gradio itself cannot look at these
        assert ask(client, {"path": name, **META}) == '{"error": null}'
    assert len(said) == 1, said
    assert "This file was not uploaded here" in said.pop()
    assert member.asked == []
    assert {str(file) for file in UPLOADS.rglob("*")} == before


def test_what_is_no_picture_at_all_opens_nothing_either(serve, secret):
    client, member, _ = serve()
    for picture in (
        str(secret),
        [{"path": str(secret)}],
        {"value": {"path": str(secret)}},
        {"url": f"file://{secret}"},
        {"path": None, "url": str(secret)},
        {"path": {"path": str(secret)}},
        {"path": [str(secret)]},
        7,
        None,
    ):
        assert str(secret) not in ask(client, picture)
    assert member.asked == []


@pytest.mark.long
def test_what_a_request_says_of_the_conversation_and_of_numbers_is_not_believed(serve, secret):
    """Its state is the server's own, and numbers are those that the page offers."""
    client, member, _ = serve()
    path = upload(client)
    turns = [[{"question": "q", "answer": "a"}]]
    for state in ({"pictures": [path], "turns": turns}, [[path], turns], str(secret), 7, {"path": str(secret), **META}):
        assert "1.5 times the average" in ask(client, {"path": path}, state=state)
    assert {asked[1] for asked in member.asked} == {()}
    count = len(member.asked)
    for numbers in ({"tokens": 0}, {"tokens": -5}, {"tokens": 10**9}, {"tokens": "8"}, {"tokens": None}, {"tokens": [8]},
                    {"tokens": {"path": str(secret)}}, {"temperature": -1}, {"temperature": 1e300}, {"temperature": "x"}):  # fmt: skip
        said = ask(client, {"path": path}, **numbers)
        assert "times the average" not in said
        assert str(secret) not in said
    for question in (None, 7, ["x"], {"path": str(secret)}, {}, "", " "):
        said = ask(client, {"path": path}, question=question)
        assert "root:" not in said
    assert [asked for asked in member.asked[count:] if not isinstance(asked[2], str)] == []


def test_no_function_of_the_page_hands_out_a_file(serve, secret):
    """Each that a request can call, whatever it is for, with files and with too much and too little."""
    client, member, page = serve()
    functions = (
        page.blocks.config["dependencies"]
        if hasattr(page.blocks, "config")
        else page.blocks.get_config_file()["dependencies"]
    )
    assert len(functions) > 10
    content = base64.b64encode(secret.read_bytes()).decode()[:60]
    with_server_code = [one["id"] for one in functions if one["backend_fn"]]
    assert len(with_server_code) == 2 + 6  # asking by two ways; forgetting by four pictures, a video and a button
    for function in with_server_code:
        for data in ([], [{"path": str(secret), **META}] * 8, [str(secret)] * 8):
            session = f"session{next(SESSIONS)}"
            body = {"data": data, "fn_index": function, "session_hash": session}
            sent = client.post("/gradio_api/queue/join", json=body)
            if sent.status_code == 200:
                with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
                    for line in events.iter_lines():
                        assert content not in line
                        assert "secret" not in line
                        if any(end in line for end in ("process_completed", "unexpected_error", "close_stream")):
                            break
    assert member.asked == []


@pytest.mark.long
def test_files_are_served_from_the_uploads_alone(serve, secret, tmp_path):
    client, _, _ = serve()
    path = upload(client)
    assert client.get(f"/gradio_api/file={path}").content == Path(path).read_bytes()
    link = os.path.join(os.path.dirname(path), "link.png")
    os.symlink(secret, link)
    missing = client.get(f"/gradio_api/file={tmp_path}/none.png")
    for ask_for in ["{}", "/{}", "//{}", "%2F{}", "{}%00", "a/../../../../../../../..{}", "file://{}"]:
        for target in (str(secret), link, "/etc/passwd", "/etc/none", str(tmp_path), str(UPLOADS)):
            for beginning in (
                "/gradio_api/file=",
                "/file=",
                "/gradio_api/file/",
                "/gradio_api/proxy=",
                "/static/",
                "/assets/",
            ):
                got = client.get(f"{beginning}{ask_for.format(target)}")
                assert got.status_code in (403, 404)
                assert beginning not in ("/gradio_api/file=",) or (got.status_code, got.text) == (404, missing.text)
                assert b"PNG" not in got.content
                assert b"root:" not in got.content


def test_nothing_is_fetched_for_anyone(serve, monkeypatch):
    client, _, _ = serve()
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0.5)
        url = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/x.png"
        for name in (url, url.replace("127.0.0.1", "localhost")):
            asked += [client.get(f"/gradio_api/{kind}={name}").status_code for kind in ("file", "proxy")]
            ask(client, {"path": name, "url": name, **META})
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert asked == [404] * 4


def test_an_upload_stays_in_its_folder_whatever_it_is_called(serve):
    client, _, _ = serve()
    for name in ["../../../x.png", "/etc/x.png", "..\\..\\x.png", "a/../../../b.png", ".ssh/config"]:
        path = os.path.realpath(upload(client, name))
        assert os.path.commonpath([path, os.path.realpath(UPLOADS)]) == os.path.realpath(UPLOADS)


#: All that may be asked for: anything else, of this gradio or a later one, is not there.
OPEN = {
    "/", "/config", "/config/", "/theme.css", "/favicon.ico", "/assets/{path:path}", "/static/{path:path}", "/svelte/{path:path}",
    "/gradio_api/file={path_or_url:path}", "/gradio_api/heartbeat/{session_hash}", "/gradio_api/queue/data", "/gradio_api/queue/join",
    "/gradio_api/startup-events", "/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/cancel", "/gradio_api/reset",
}  # fmt: skip


def routes(page):
    """Every method and path that gradio has on the page, with something in the place of what varies."""
    found, routers = set(), [page.blocks.app.router]
    while routers:
        for route in routers.pop().routes:
            if hasattr(route, "original_router"):  # as FastAPI keeps a router that was included
                routers.append(route.original_router)
                continue
            found.update((method, route.path) for method in getattr(route, "methods", None) or {"GET"})
    return sorted(found)


@pytest.mark.long
def test_every_endpoint_that_the_page_does_not_need_is_not_there(serve):
    client, _, page = serve()
    answered = set()
    paths = routes(page)
    assert len(paths) > 60
    for method, path in paths:
        filled = "".join(
            part.split("}", 1)[-1] if "}" in part else part for part in path.replace("{", "\0{").split("\0")
        )
        if path not in OPEN:
            for body in ({}, {"data": [{"path": "/etc/passwd"}, "What?"], "session_hash": "s", "fn_index": 0}):
                sent = client.request(method, filled or "/x", json=body)
                assert (sent.status_code, method == "HEAD" or sent.text == "There is nothing here.") == (404, True), (
                    path
                )
                answered.add(path)
    assert answered >= {
        "/gradio_api/run/{api_name}", "/gradio_api/api/{api_name}", "/gradio_api/call/{api_name}", "/gradio_api/call/v2/{api_name}",
        "/gradio_api/component_server", "/gradio_api/deep_link", "/gradio_api/info", "/gradio_api/process_recording", "/login",
        "/monitoring",
        "/gradio_api/vibe-edit", "/gradio_api/proxy={url_path:path}", "/gradio_api/stream/{event_id}", "/gradio_api/token",
    }  # fmt: skip
    for path in (
        "/docs",
        "/redoc",
        "/openapi.json",
        "/gradio_api/mcp",
        "/gradio_api/call/ask",
        "/gradio_api/run/predict",
    ):
        assert {client.get(path).status_code, client.post(path, json={}).status_code} == {404}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert client.request(method, "/gradio_api/queue/join").status_code == 404


EVERYWHERE = [
    ("GET", "/"),
    ("GET", "/config"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/upload"),
    ("OPTIONS", "/"),
]


def test_only_the_names_of_this_computer_are_answered_to(serve):
    client, _, _ = serve()
    for host in [
        "evil.example",
        "evil.example:7860",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "192.168.0.1",
        "0.0.0.0",
        "127.0.0.1@evil.example",
        "[::1",
        "",
        "localhost.",
    ]:
        for method, path in EVERYWHERE:
            assert client.request(method, path, headers={"Host": host}).status_code in (400, 403)
        with socket.create_connection(("127.0.0.1", client.base_url.port)) as line:
            line.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert line.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 403")


def test_this_computer_is_answered_by_each_of_its_names(serve):
    client, _, _ = serve()
    for host in ["localhost", "127.0.0.1:1234", "LOCALHOST:80", "[::1]:7860"]:
        for headers in ({}, {"Origin": f"http://{host}"}, {"Sec-Fetch-Site": "same-origin"}):
            assert client.get("/config", headers={"Host": host, **headers}).status_code == 200


def test_pages_of_others_cannot_use_this_one(serve):
    client, member, _ = serve()
    origins = ("http://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://")
    sites = ("cross-site", "same-site")
    for headers in [{"Origin": origin} for origin in origins] + [{"Sec-Fetch-Site": site} for site in sites]:
        preflight = {"Access-Control-Request-Method": "POST"}
        for method, path in EVERYWHERE:
            sent = client.request(method, path, headers={**headers, **preflight})
            if (method, path) != ("GET", "/") or "Origin" in headers:
                assert sent.status_code == 403
                assert not [name for name in sent.headers if name.startswith("access-control")]
        assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link that is followed
        assert member.asked == []


def test_websockets_are_not_opened(serve):
    client, _, _ = serve()
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "a" * 22 + "==",
    }
    for path in ("/gradio_api/queue/join", "/queue/join", "/gradio_api/queue/data", "/ws"):
        assert client.get(path, headers=upgrade).status_code in (404, 422)


def basic(text):
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.long
def test_a_page_for_other_computers_answers_nothing_without_the_password(serve):
    client, _, page = serve(host="127.0.0.1", password=PASSWORD)
    wrong = [{}, basic(":"), basic("user:"), basic("user:wrong"), basic(PASSWORD), basic(f"{PASSWORD}:"), basic(f"u:{PASSWORD} "),
             {"Authorization": f"Basic {PASSWORD}"}, {"Authorization": "Basic"}, {"Authorization": f"Bearer {PASSWORD}"}]  # fmt: skip
    for headers in wrong:
        for method, path in EVERYWHERE:
            sent = client.request(method, path, headers=headers)
            assert sent.status_code == 401
            assert sent.headers["www-authenticate"].startswith("Basic ")
    for method, path in routes(page):
        assert client.request(method, path.replace("{", "").replace("}", "")).status_code == 401
    client.headers.update(basic(f"anyone:{PASSWORD}"))
    assert "1.5 times" in ask(client, {"path": upload(client)})
    assert client.get("/", headers={"Host": "a-name-of-this-computer"}).status_code == 200
    assert client.get("/", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/gradio_api/file=/etc/passwd").status_code == 404
