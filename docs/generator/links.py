"""Links of the repository's Markdown, which must lead somewhere on GitHub and on the site alike."""

import os
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {".md", ".png", ".svg"}
"""Files in docs that are on the site; it links to all others in the repository."""

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"""(?<=\]\()[^()\s]+(?=\))|(?<=src=")[^"]+(?=")|(?<=href=")[^"]+(?=")""")
GROUP = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
ENTRY = re.compile(r"^- \[[^\]]+\]\(([^)#]+)\.md\)", re.MULTILINE)


def with_site_links(text: str, page: Path, report: Callable[[str], None]) -> str:
    """Return a page's Markdown with its links as they are on the site; links in code stay.

    Args:
        page: the file that the text is from; the site has README.md in the place of docs/index.md.
        report: receives a line for each link to a file that does not exist.
    """

    def rewritten(match: re.Match[str]) -> str:
        target, mark, anchor = match[0].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        file = Path(os.path.normpath(page.parent / target))
        if not file.exists():
            report(f"{page.relative_to(ROOT)}: {match[0]} does not exist")
            return match[0]
        if file.is_relative_to(DOCS) and file.suffix in PAGES:
            start = DOCS if page == ROOT / "README.md" else page.parent
            return f"{Path(os.path.relpath(file, start)).as_posix()}{mark}{anchor}"
        return f"repository:{file.relative_to(ROOT).as_posix()}"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [TARGET.sub(rewritten, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, TARGET.sub(rewritten, text[end:])])


def repository_url() -> str:
    """Return where `repository:` links begin: on GitHub where an Actions job builds the site, else in this checkout."""
    if "GITHUB_REPOSITORY" not in os.environ:
        return ROOT.as_uri()
    return f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}/blob/main"


def front_page(readme: str, index: str) -> str:
    """Return the site's first page: README.md, then the lists of docs/index.md, which are the navigation too."""
    parts = [readme, "\n## Documentation\n"]
    for title, listed in GROUP.findall(index):
        pages = "\n".join(ENTRY.findall(listed))
        parts += [f"\n### {title}\n{listed}", f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n"]
    return "".join(parts)
