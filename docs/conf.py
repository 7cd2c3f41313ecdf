"""Sphinx: `make docs` writes docs/_build/html."""

from sphinx.ext.napoleon import GoogleDocstring

project = "switchkd"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "switchkd"
exclude_patterns = ["_build"]
myst_fence_as_directive = ["math"]  # as forges write equations
myst_heading_anchors = 3
default_role = "code"  # docstrings write names as Markdown does
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

# What stands before a colon in the comment above a field is no type: the annotation says that
GoogleDocstring._consume_inline_attribute = lambda self: (
    "",
    GoogleDocstring(self._dedent(self._consume_to_end()), self._config).lines(),
)
