"""HTML for a text: the prompt, and its continuation with the probability of each token."""

from collections.abc import Sequence
from html import escape
from math import exp

from gptstar.data.tokenizer import Tokenizer
from gptstar.inference.generate import Piece, printable

CSS = """
.written {white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; min-height: 12rem; padding: .75rem 1rem;
  border: 1px solid var(--border-color-primary); border-radius: 8px; font-size: 1rem}
.written .given {opacity: .75}
.written i {font-style: normal; border-radius: 3px; position: relative; background: rgba(0, 114, 178, .07)}
.written i.p1 {background: rgba(0, 114, 178, .16)}
.written i.p2 {background: rgba(0, 114, 178, .28)}
.written i.p3 {background: rgba(0, 114, 178, .42)}
.written i:hover {outline: 1px solid #0072b2}
.written i:hover::after {content: attr(data-tip); position: absolute; left: 0; top: 1.6em; z-index: 9; white-space: pre;
  padding: .4rem .6rem; border-radius: 6px; background: #1f2933; color: #fff; font: 12px/1.5 ui-monospace, monospace;
  pointer-events: none}
@media (max-width: 700px) {.written i:hover::after {position: fixed; left: 1rem; top: auto; bottom: 1rem}}
.about {font-size: .85rem; opacity: .8; padding: .3rem 0}
"""

SHADES = (0.5, 0.1, 0.01)
"""Probabilities below which a token is shaded darker, step by step."""


class Page:
    """The HTML of a growing text. Everything that a visitor or a model wrote is escaped."""

    def __init__(self, prompt: str, tokenizer: Tokenizer) -> None:
        self._parts = [f'<span class="given">{escape(prompt)}</span>']
        self._tokenizer = tokenizer
        self._waiting: list[Piece] = []  # tokens whose text is not complete yet

    def add(self, piece: Piece) -> None:
        """Add a token."""
        self._waiting.append(piece)
        if piece.text:
            tips = "\n\n".join(self._tip(each) for each in self._waiting)
            least = min(exp(each.log_probability or 0.0) for each in self._waiting)
            shade = sum(least < limit for limit in SHADES)
            self._parts.append(f'<i class="p{shade}" data-tip="{escape(tips)}">{escape(piece.text)}</i>')
            self._waiting.clear()

    @property
    def html(self) -> str:
        """The HTML of the whole text."""
        return f'<div class="written">{"".join(self._parts)}</div>'

    def _tip(self, piece: Piece) -> str:
        lines = [f"{exp(piece.log_probability or 0.0):7.2%}  {printable(self._tokenizer, piece.token)}", ""]
        lines += [f"{exp(value):7.2%}  {printable(self._tokenizer, token)}" for token, value in piece.likeliest]
        return "\n".join(lines)


def about(name: str, pieces: Sequence[Piece], seconds: float, note: str = "") -> str:
    """Return the line under a text: the model's name, the tokens, their speed and perplexity."""
    if not pieces:
        return '<div class="about">&nbsp;</div>'
    mean = sum(piece.log_probability or 0.0 for piece in pieces) / len(pieces)
    ended = ", and the document ended" if pieces[-1].ended_by == "end_of_text" else ""
    speed = len(pieces) / max(seconds, 1e-9)
    words = f"{escape(name)}: {len(pieces)} tokens, {speed:.0f} a second, perplexity {exp(-mean):.1f}{ended}"
    return f'<div class="about">{words}{escape(note)}</div>'
