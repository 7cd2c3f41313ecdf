"""Figures 8 to 11: hostile paths, code, texts, and no network."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import offline
import pytest
from browser import visit
from canaries import cases, control, train_with, write_sound
from hostile import ELEMENTS, HOSTILE
from lives import End, Nursery, in_a_fork
from PIL import Image
from run_folders import write_fake_run, write_questions

from switchkd.data.formats import load_rows
from switchkd.report.build import report

#: Each leads out of the image folder, to the network, or to nothing that is a file there.
HARMFUL = [
    *(f"{way}secret.png" for way in ("../", "a/../../", "./../", "a/b/../../../", "../root/../", "a/./../../", ".//../")),
    *(f"{root}secret.png" for root in ("/", "//", "///", "{outside}/", "//localhost/", "~/", "~root/")),
    *(f"{scheme}secret.png" for scheme in ("file:", "file:/", "file://", "file:///", "FILE:///", "file://localhost/", "file:///{outside}/")),
    *(f"{scheme}127.0.0.1:9/x.png" for scheme in ("http://", "https://", "HTTP://", "hTTps://", "ftp://", "s3://", "gs://", "hf://", "ws://")),
    *(f"{scheme}192.0.2.1/x.png" for scheme in ("http://", "https://", "//", "\\\\", "http:/", "http:")),
    *(f"a.png{end}" for end in ("\0", "\0.jpg", "\n", "\r", "\x1b[2J", "/..", "/../../secret.png", "/")),
    *(f"{dots}/secret.png" for dots in ("%2e%2e", "%252e%252e", "．．", "..%2f..", "..%5c..", "‥", ".. ", " ..")),
    *("C:/x.png", "C:\\x.png", "..\\secret.png", "\\etc\\passwd", "|touch x", "zip://x::http://127.0.0.1/a"),
    *("out/secret.png", "out.png", "chain.png", "hard/../../secret.png", "out/../out/secret.png", "", " ", ".", "\ud800.png"),
]  # fmt: skip


def read_rows(tell: Callable[..., None], root: str, names: list[str]) -> None:
    """In a process of its own: which rows have a problem, and what was asked of the network, this machine's included."""
    import json
    import sys

    asked: list[str] = []
    sys.addaudithook(lambda event, arguments: asked.append(event) if event.startswith("socket.") else None)
    talk = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": "!"}]
    data = Path(root) / "rows.json"
    rows = [{"id": str(number), "image": name, "conversations": talk} for number, name in enumerate(names)]
    data.write_text(json.dumps(rows))
    from switchkd.data.errors import SampleError
    from switchkd.data.images import open_image

    asked.clear()
    for row, name in zip(load_rows(str(data)), names, strict=True):
        problem = row["problem"]
        if not problem:
            try:
                open_image(row["images"][0])
            except SampleError as error:
                problem = str(error)
        tell("row", name, problem)
    tell("asked", asked)


def test_paths_that_lead_elsewhere(tmp_path, figure):
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    for secret in (tmp_path / "secret.png", outside / "secret.png", root / "a" / "fine.png"):
        Image.new("RGB", (2, 2)).save(secret)
    (root / "out").symlink_to(outside)
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "chain.png").symlink_to(root / "out.png")
    names = list(dict.fromkeys(name.replace("{outside}", str(outside)) for name in HARMFUL))
    said = in_a_fork(read_rows, str(root), [*names, "a/fine.png"])
    problems = {words[1]: words[2] for words in said if words[0] == "row"}
    assert problems.pop("a/fine.png") is None
    assert len(problems) == len(names) >= 50
    assert [name for name, problem in problems.items() if not problem] == []
    (asked,) = [words[1] for words in said if words[0] == "asked"]
    assert asked == []
    figure(
        "8. paths",
        f"{len(names)} paths and links; a good one beside them is read",
        f"{len(names)} refused, 0 sockets opened",
    )


@pytest.mark.slow  # its short form too
def test_code_that_would_run(tmp_path, figure, whole):
    sound = tmp_path / "sound"
    sound.mkdir()
    write_sound(sound)
    fired = [words[1:] for words in in_a_fork(control, str(tmp_path)) if words[0] == "control"]
    assert len(fired) >= 12
    assert [name for name, did in fired if not did] == []  # the payloads are live ones
    with Nursery(sound / "recipe.yaml") as nursery:
        assert nursery.live(end=End(batch=2)).killed
    names = sorted(cases())
    if not whole:
        names = random.Random(8).sample(names, 4)
    endings = Counter()
    for number, name in enumerate(names):
        said = in_a_fork(train_with, str(sound), str(tmp_path / str(number)), name)
        ((_, _, code, ran), *_) = [words for words in said if words[0] == "ended"]
        assert not ran, f"{name}: its code ran"
        # what a template or a processor asks for may be ignored; all else is an error
        assert code in (1, 2) or name.startswith(("chat template", "remote code")), f"{name}: exit code {code}"
        endings["refused" if code else "ignored"] += 1
        shutil.rmtree(tmp_path / str(number))
    figure(
        "9. code",
        f"{len(names)} pickles, YAML tags, tars, templates, remote code; {len(fired)} live controls fired where opened carelessly",
        f"0 ran: {endings['refused']} refused, {endings['ignored']} ignored",
    )


@pytest.mark.slow  # tests/report/test_report_in_browser.py does it in the normal suite
@pytest.mark.browser
def test_markup_in_a_report(browser, tmp_path, figure):
    """All payloads as questions, answers, kinds and names of models."""
    assert len(HOSTILE) >= 50
    texts = dict[str, str]()

    def text(name: str) -> str:
        if name not in texts:
            texts[name] = " ".join([name, *(HOSTILE[(3 * len(texts) + i) % len(HOSTILE)] for i in range(3))])
        return texts[name]

    (tmp_path / "data").mkdir()
    data = write_questions(tmp_path / "data", texts=text)
    for number, right in enumerate(["100100", "011011"]):
        write_fake_run(tmp_path / "runs" / f"run-{number}", right, texts=text, data=str(data))
    shown = {payload for words in texts.values() for payload in HOSTILE if payload in words}
    _, page = report([tmp_path / "runs"], tmp_path / "report.html", questions=0)
    with visit(browser, page.as_uri()) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        assert opened.page.evaluate(ELEMENTS) == 0
        assert opened.page.evaluate("window.hostile") is None
        policy = opened.page.evaluate("document.querySelector('meta[http-equiv=Content-Security-Policy]').content")
        assert opened.elsewhere(page.as_uri()) == opened.complaints == []
    assert "default-src 'none'" in policy
    assert not [word for word in policy.split() if "//" in word or "*" in word or word.startswith(("http", "ws"))]
    assert len(shown) == len(HOSTILE)
    figure(
        "10. markup",
        f"{len(shown)} payloads in questions, answers, kinds and names",
        "0 script nodes, policy without other origins",
    )


def test_nothing_reaches_the_network(figure):
    """The guard itself is tested in tests/test_offline.py; here, that it watches this very run."""
    with pytest.raises(offline.NetworkError):
        offline.probe()
    with pytest.raises(AssertionError, match="tried to reach the network"):
        offline.fail_if_tried()
    figure(
        "11. offline",
        "every test of `make test` and `make reliability`, each guarded; the guard refuses a probe",
        "0 sockets left the machine",
    )
