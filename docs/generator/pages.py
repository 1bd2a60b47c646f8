"""The pages of docs/reference by file name."""

from generator import commands, configuration, interface


def written() -> dict[str, str]:
    """Return the text of each page."""
    pages = {"configuration.md": configuration, "commands.md": commands, "python.md": interface}
    return {name: page.page().rstrip() + "\n" for name, page in pages.items()}
