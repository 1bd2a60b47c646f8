"""Sphinx's configuration: `make docs` builds the site from README.md and docs/*.md, as GitHub shows them."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sphinx.util import logging

from generator.links import ROOT, front_page, repository_url, with_site_links

project = "gptstar"
author = "The gptstar authors"
extensions = ["myst_parser"]
exclude_patterns = ["notebooks", "generator"]
html_theme = "furo"
html_title = "gptstar"
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 6  # the anchors that GitHub gives to headings
myst_url_schemes = {
    **dict.fromkeys(("http", "https", "mailto")),
    "repository": repository_url() + "/{{path}}",  # what with_site_links makes of files that are not on the site
}
smartquotes = False  # text stands as it is written
nitpicky = True


def use_readme(app: Any, docname: str, source: list[str]) -> None:
    """Give Sphinx a page's text with the site's links, and as the first page README.md with the navigation."""
    report = logging.getLogger(__name__).warning
    page = ROOT / "docs" / f"{docname}.md"
    text = with_site_links(source[0], page, report)
    if docname == app.config.root_doc:
        readme = ROOT / "README.md"
        app.env.note_dependency(str(readme))
        text = front_page(with_site_links(readme.read_text(encoding="utf-8"), readme, report), text)
    source[0] = text


def setup(app: Any) -> dict[str, bool]:
    """Connect the above to Sphinx."""
    app.connect("source-read", use_readme)
    return {"parallel_read_safe": True}
