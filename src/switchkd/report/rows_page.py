"""Rows → one HTML file that shows them with their pictures, and asks for nothing from anywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from switchkd.data.errors import SampleError
from switchkd.data.images import open_image
from switchkd.files import write_together
from switchkd.report.pictures import SIDE, uri


def write_rows_page(title: str, lines: Sequence[str], rows: Sequence[dict[str, Any]], output: Path) -> Path:
    """Write a page with some lines of text and some canonical rows; texts of theirs are never markup."""
    environment = Environment(
        loader=PackageLoader("switchkd.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    shown = [row | {"pictures": [_picture(image) for image in row["images"]]} for row in rows]
    page = environment.get_template("rows.jinja").render(title=title, lines=lines, rows=shown)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_together({output: page}, errors="xmlcharrefreplace")
    return output


def _picture(image: dict[str, Any]) -> dict[str, str]:
    """A small picture inside of a URI; or why there is none."""
    try:
        picture = open_image(image)
    except SampleError as error:
        return {"uri": "", "said": str(error)}
    said = f"{picture.width} × {picture.height} pixels"
    picture.thumbnail((SIDE, SIDE))
    return {"uri": uri(picture), "said": said}
