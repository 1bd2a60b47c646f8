"""What README.md and docs say: their fenced blocks, the files among them, and the commands."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from support import ROOT

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`(?P<file>[\w./-]+\.\w+)`:?\n+\Z")
LOOP = re.compile(r"\bfor (\w+) in (\S+)[^;\n]*; do")
SHELLS = {"bash", "sh", "shell", "console"}


@dataclass(frozen=True)
class Command:
    """A command as the page has it, and the words that a shell makes of it."""

    page: str
    text: str
    words: tuple[str, ...]


def blocks(page: str) -> list[tuple[str, str, str | None]]:
    """The language and the text of each fenced block, and the file that it is, if the line above ends in its name."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        named = NAMED.search(text[: fence.start()])
        found.append((fence["language"], fence["text"], named and named["file"]))
    return found


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows."""
    for language, text, name in blocks(page):
        if name and language not in SHELLS:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


def commands(page: str) -> list[Command]:
    """The commands of a page in their order."""
    return [
        command
        for language, text, _ in blocks(page)
        if language in SHELLS
        for command in _commands(page, _typed(text) if language == "console" else text)
    ]


def _typed(text: str) -> str:
    """What stands after the prompts of a console, with the lines that continue it."""
    lines, continues = [], False
    for line in text.splitlines():
        if continues or line.startswith("$ "):
            lines.append(line.removeprefix("$ "))
            continues = line.endswith("\\")
    return "\n".join(lines)


def _commands(page: str, text: str) -> list[Command]:
    for name, first in LOOP.findall(text):  # the first pass of a loop stands for all
        text = text.replace(f"${name}", first)
    lines = re.sub(r"\\\n\s*", " ", LOOP.sub("", text)).splitlines()
    found = []
    for line in lines:
        words = [word for word in shlex.split(line, comments=True) if word not in ("done", "done;", ";")]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # the environment
            words.pop(0)
        found += [Command(page, " ".join(part), tuple(part)) for part in _parts(words)]
    return found


def _parts(words: list[str]) -> list[list[str]]:
    """The commands of a line that `&&` or a pipe joins, without where they write."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return [part[: part.index(">")] if ">" in part else part for part in parts if part]
