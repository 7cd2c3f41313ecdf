"""The page in a real Chromium: hostile texts stay text, and it fits a laptop and a phone."""

import re
from dataclasses import replace

import pytest
from browser import LAPTOP, PHONE, visit
from hostile import ELEMENTS, HOSTILE
from playwright.sync_api import expect
from run_folders import KINDS, write_fake_run, write_questions, write_results, write_study

from switchkd.report.build import report
from switchkd.report.evidence import Agreement, Probe
from switchkd.report.gather import gather
from switchkd.report.page import write_page

pytestmark = pytest.mark.browser

#: Beside what is hostile to every page: what plotly's small HTML, its hover texts, this page's JSON or a script's objects could take amiss.
PAYLOADS = [
    *HOSTILE,
    "<!--<script>",
    "<b>bold</b><br><sub>x</sub>",
    "<img src=//evil.test/x.png>",
    "<a href='//evil.test'>x</a>",
    "<style>@import '//evil.test/x.css';</style>",
    "<audio src=x onerror=window.hostile=1>",
    "<marquee onstart=window.hostile=1>x</marquee>",
    "' onmouseover='window.hostile=1",
    '" onmouseover="window.hostile=1',
    "{{ 7 * 7 }}",
    "%{x} %{fullData.name} %{customdata}",
    "</b></span></td></table>",
    "\\u003cscript\\u003ewindow.hostile=1\\u003c/script\\u003e",
    "<scr\x00ipt>window.hostile=1</scr\x00ipt>",
    "$\\href{javascript:window.hostile=1}{x}$",
    "__proto__",
    "constructor",
    "\ud83d<img src=x onerror=window.hostile=1>",
    "x" * 3000,
    "a\nb\tc\rd",
    "",
]
#: The plotly library and the page's own two; two more hold data.
OWN_SCRIPTS = 5


def texts_of(turn: int):
    """Three other payloads wherever a text is asked for, the next ones at the next turn."""
    handed: dict[str, str] = {}

    def text(name: str) -> str:
        if name not in handed:
            begin = 3 * len(handed) + turn
            handed[name] = " ".join([name, *(PAYLOADS[(begin + i) % len(PAYLOADS)] for i in range(3))])
        return handed[name]

    return text


def check(page, own: int = OWN_SCRIPTS) -> None:
    """Nothing ran, loaded or became an element that the page did not make itself."""
    found = page.evaluate(
        """() => ({
            scripts: document.querySelectorAll('script').length,
            active: document.querySelectorAll('iframe, object, embed, base, form, input, video, audio, marquee, math, link, template')
                .length - document.querySelectorAll('#answers .filters input[type=search]').length,
            handlers: [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => /^on/i.test(a.name))).length,
            links: [...document.querySelectorAll('a')].filter(a => !(a.getAttribute('href') || '').startsWith('#')).length,
            images: [...document.querySelectorAll('img, image')].filter(i => !/^data:image\\/(png|webp)/.test(i.src || '')).length,
            styles: [...document.querySelectorAll('main style, header style')].length,
        })"""
    )
    assert found == {"scripts": own, "active": 0, "handlers": 0, "links": 0, "images": 0, "styles": 0}
    assert page.evaluate(ELEMENTS) == 0
    assert page.evaluate("window.hostile") is None


def hover(page) -> None:
    """Put the mouse on the charts, where plotly writes names and texts."""
    for chart in page.query_selector_all(".chart")[:8]:
        chart.scroll_into_view_if_needed()
        box = chart.bounding_box()
        if box:
            for share in (0.35, 0.6):
                page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] * 0.5)


@pytest.mark.long
def test_hostile_texts_stay_texts(browser, tmp_path):
    """In ids, kinds, questions, answers, recipe values, logged terms, models' names, arms, notes and paths."""
    assert len(PAYLOADS) >= 50
    seen = ""
    for turn in range(0, len(PAYLOADS), 24):
        text, folder = texts_of(turn), tmp_path / str(turn)
        write_fake_run(folder / "a", "100101", texts=text)
        write_fake_run(folder / "b", "011011", method="switch_kd", texts=text)
        write_results(folder / "teacher.results.json", "111111", texts=text, model="teacher")
        evidence = gather([folder])
        names = {model.name: text(model.name) for model in evidence.models}
        question = next(iter(evidence.models[0].answers))
        probe = Probe(
            2,
            3,
            9,
            3,
            {"teacher": (3, 4, 5), "student": (3, 3, 3)},
            {"student": Agreement(1.0, 2.0, 3.0)},
            {},
            (text("note"),),
        )
        models = tuple(
            replace(m, name=names[m.name], probe=probe if m.recipe else None, missing={"results": text("miss")})
            for m in evidence.models
        )
        evidence = replace(
            evidence, models=models, baseline=names["a"], chosen=(question,), unread=text("unread"),
            same_answers={names["a"]: {None: 1.0, text("colour"): 2.0}},
        )  # fmt: skip
        page = write_page(evidence, folder / "report.html")
        with visit(browser, page.as_uri()) as opened:
            hover(opened.page)
            assert opened.page.locator("#answers tbody tr").count() == 6
            needle = next(
                payload for payload in HOSTILE if any(payload in a.question for a in models[0].answers.values())
            )
            opened.page.locator("#answers input").fill(needle)  # no pattern, and no markup in what it finds
            held = [
                any(needle in told for m in models for told in (name, m.answers[name].question, m.answers[name].got))
                for name in models[0].answers
            ]
            assert opened.page.locator("#answers [data-count]").inner_text() == f"{sum(held)} of 6 questions"
            check(opened.page)
            assert opened.elsewhere(page.as_uri()) == []
            assert opened.complaints == []
            assert opened.sideways() == 0
            seen += opened.page.inner_text("body")
    for payload in (HOSTILE[0], "{{ 7 * 7 }}", "&lt;script&gt;window.hostile=1&lt;/script&gt;"):
        assert payload in seen  # shown as it is


@pytest.mark.long
def test_hostile_arms_of_a_study_stay_texts(browser, tmp_path):
    texts = [" ".join([str(number), *PAYLOADS[number::24]]).replace("\ud83d", "") for number in range(24)]
    arms = {text: [40.0 + number, 50.0] for number, text in enumerate(texts)}
    text = texts_of(3)
    page = write_page(
        gather([write_study(tmp_path, arms, texts=lambda name: name if name in arms else text(name))]),
        tmp_path / "report.html",
    )
    with visit(browser, page.as_uri()) as opened:
        opened.page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
        hover(opened.page)
        check(opened.page)
        assert opened.elsewhere(page.as_uri()) == []
        assert opened.complaints == []
        assert opened.sideways() == 0
        ticks = opened.page.eval_on_selector_all(".ytick text", "nodes => nodes.map(node => node.textContent)")
        assert any("<script>window" in tick for tick in ticks)  # plotly shows the name, it does not read it


#: A chart's own colours, which stand out from both pages; and what its texts and grid have to follow.
INKS = """() => ['.xtick text', '.gridlayer path', '.radial-grid path', '.angularaxistick text', '.js-line'].map(part => {
    const style = getComputedStyle(document.querySelector('.chart ' + part));
    return part.endsWith('text') ? style.fill : style.stroke;
})"""


@pytest.mark.long
def test_a_page_of_thousands_of_answers_is_filtered_dark_and_printed_light(browser, tmp_path):
    write_fake_run(tmp_path / "sft", "000000")
    write_fake_run(tmp_path / "switch-kd", "111111", method="switch_kd")
    evidence = gather([tmp_path])
    kinds = [evidence.models[1].answers[name] for name in ("colour-0", "count-1")]
    many = {
        f"n{i}": replace(kinds[i % 2], id=f"n{i}", right=i % 3 == 0, question=f"number {i}?", truncated=i == 4995)
        for i in range(5000)
    }
    all_right = {name: replace(answer, right=True) for name, answer in many.items()}
    models = (replace(evidence.models[0], answers=all_right), replace(evidence.models[1], answers=many))
    page = write_page(replace(evidence, models=models), tmp_path / "report.html")
    with visit(browser, page.as_uri()) as opened:
        # all answers
        rows, count = opened.page.locator("#answers tbody tr"), opened.page.locator("#answers [data-count]")
        kind, first, second = (opened.page.locator("#answers select").nth(i) for i in range(3))
        assert (rows.count(), count.inner_text()) == (50, "5000 of 5000 questions")
        opened.page.locator(".answers").evaluate("box => { box.scrollTop = box.scrollHeight; }")
        expect(rows).to_have_count(100)
        second.select_option("right")
        assert count.inner_text() == "1667 of 5000 questions"
        kind.select_option("count")
        assert count.inner_text() == "833 of 5000 questions"
        opened.page.locator("#answers input").fill("NUMBER 4995?")
        assert count.inner_text() == "1 of 5000 questions"
        assert " ".join(rows.inner_text().split()) == "number 4995? count · n4995 yes yes cut yes cut"
        assert [cell.get_attribute("class") for cell in rows.locator("td").all()] == ["user", "right", "right"]
        first.select_option("wrong")
        assert (rows.count(), count.inner_text()) == (0, "0 of 5000 questions")
        # colours
        ground = "getComputedStyle(document.body).backgroundColor"
        light = (opened.page.evaluate(ground), opened.page.evaluate(INKS))
        opened.page.emulate_media(color_scheme="dark")
        dark = (opened.page.evaluate(ground), opened.page.evaluate(INKS))
        opened.page.emulate_media(color_scheme="dark", media="print")
        assert (opened.page.evaluate(ground), opened.page.evaluate(INKS)) == light
        assert opened.complaints == []
    ink, rule, curve = "rgb(31, 41, 51)", "rgb(217, 222, 228)", "rgb(0, 114, 178)"
    assert light == ("rgb(255, 255, 255)", [ink, rule, rule, ink, curve])
    ink, rule = "rgb(228, 233, 238)", "rgb(53, 61, 71)"
    assert dark == ("rgb(20, 24, 29)", [ink, rule, rule, ink, curve])


@pytest.mark.long
@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_it_fits_the_screen_and_answers_clicks(browser, tmp_path, size):
    data = write_questions(tmp_path)
    write_fake_run(tmp_path / "runs" / "sft", "100100", data=str(data))
    write_fake_run(tmp_path / "runs" / "switch-kd", "011011", method="switch_kd", data=str(data))
    _, page = report([tmp_path / "runs"], tmp_path / "report.html", questions=0)
    with visit(browser, page.as_uri(), size) as opened:
        assert opened.sideways() == 0
        assert opened.complaints == []
        assert opened.elsewhere(page.as_uri()) == []
        widths = opened.page.eval_on_selector_all(
            ".chart .main-svg", "nodes => nodes.map(node => node.getBoundingClientRect().right)"
        )
        assert widths
        assert max(widths) <= size[0]
        assert opened.page.locator(".example img").count() == 6  # every question was won or lost
        first = opened.page.locator(".chart").first
        assert first.locator(".scatterlayer .trace").count() == 2
        opened.page.get_by_role("button", name="switch-kd").first.click()
        expect(first.locator(".scatterlayer .trace")).to_have_count(1)
        assert set(
            opened.page.eval_on_selector_all("button[aria-pressed=false]", "nodes => nodes.map(n => n.innerText)")
        ) == {"switch-kd"}
        opened.page.get_by_role("button", name="switch-kd").first.click()
        expect(first.locator(".scatterlayer .trace")).to_have_count(2)
        # what was folded away is drawn when it opens
        assert re.search(r"colour|count|shape", opened.page.inner_text(".example >> nth=0"))
        assert len(KINDS) == 3
