"""`Evidence` → one HTML file that opens anywhere and asks for nothing from anywhere."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from switchkd.files import write_together
from switchkd.report import alt_texts, facts_section, figures, sections
from switchkd.report.answers_section import answers_list
from switchkd.report.evidence import PATHWAYS, Evidence
from switchkd.report.study_section import section as study_section

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TEMPLATES = "templates"


class Drawn(NamedTuple):
    """A chart's place among what the page's script draws, and what it shows in words."""

    key: str
    alt: str


def write_page(evidence: Evidence, output: Path) -> Path:
    """Write the page; half of a character in a text becomes a replacement character in the browser."""
    write_together({output: render(evidence)}, errors="xmlcharrefreplace")
    return output


def render(evidence: Evidence) -> str:
    """The page. Scripts run only if they are the page's own three, named by their hashes in its policy; nothing else is loaded."""
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), _asset("page.js"), _asset("answers.js")]
    environment = Environment(
        loader=PackageLoader("switchkd.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn: dict[str, Any] = {}

    def chart(figure: "go.Figure") -> Drawn:
        """Keep a figure for the page's script."""
        key = f"f{len(drawn)}"
        drawn[key] = figure.to_plotly_json()
        return Drawn(key, alt_texts.of_chart(figure))

    keys = figures.figure_keys(evidence)
    answers = answers_list(evidence.models)
    body = environment.get_template("body.jinja").render(
        evidence=evidence,
        study=study_section(evidence.study, evidence.shown, keys) if evidence.study else None,
        results=sections.results(evidence),
        training=sections.training(evidence),
        knees=sections.knees(evidence),
        agreement=sections.agreement(evidence),
        attention=sections.attention(evidence),
        examples=sections.examples(evidence),
        answers=answers,
        cost=facts_section.cost(evidence),
        recipes=facts_section.recipes(evidence),
        provenance=facts_section.provenance(evidence),
        keys=keys,
        line=figures.style,
        pathways={who: figures.PATHWAY_COLOURS[who] for who in PATHWAYS},
        chart=chart,
    )
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    return environment.get_template("page.jinja").render(
        # data: and blob: are images made in the page; plotly writes style rules
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
        title=title(evidence),
        style=Markup(_asset("page.css")),
        body=Markup(body),
        figures=Markup(_json(drawn)),
        answers=None if answers is None else Markup(_json(asdict(answers))),
        scripts=[Markup(script) for script in scripts],
    )


def title(evidence: Evidence) -> str:
    """What the page is about, in a few words."""
    if evidence.study:
        return f"Study: {evidence.study.name}"
    return ", ".join(model.name for model in evidence.models)


def _asset(name: str) -> str:
    return (resources.files("switchkd.report") / _TEMPLATES / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json(values: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
