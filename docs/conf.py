"""Sphinx: `make docs` writes docs/_build/html."""

project = "switchkd"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "switchkd"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
