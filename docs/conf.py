"""How the guides are built: ``make docs``, which treats every warning as an error.

Sphinx with MyST, as the guides stay plain Markdown that reads well where the code is, and as a link to a
page or a heading that is not there is an error.
"""

from __future__ import annotations

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "flowtx"
extensions = ["myst_parser"]
# Headings can be linked to, as on GitHub.
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"description": "The session server for web products"}
html_show_copyright = False
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Show diagrams as their text, without a script from elsewhere."""
    app.add_lexer("mermaid", TextLexer)
