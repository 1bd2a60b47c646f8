"""Stop strings, which may name special tokens."""

import re
from collections.abc import Sequence
from itertools import groupby

from gptstar.data.tokenizer import Tokenizer


class Stops:
    """Stop strings as they are found in marked text, where each special token that one of them names is a mark.

    Special tokens add nothing to a text, so their names are not found in it. A mark is half of a surrogate pair,
    which decoded text never holds.

    Attributes:
        marks: those of the special tokens, by number.
        strings: the stops as they were given, and with marks for the names of special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        named = [token for token in tokenizer.special_tokens.items() if any(token[1] in string for string in stop)]
        self.marks = {number: chr(0xD800 + place) for place, (number, _) in enumerate(named)}
        marked = list(stop)
        for number, name in sorted(named, key=lambda token: -len(token[1])):
            marked = [string.replace(name, self.marks[number]) for string in marked]
        self.strings = tuple(dict.fromkeys([*stop, *marked]))

    def marked_text(self, tokens: Sequence[int]) -> str:
        """Join the text of tokens and the marks."""
        groups = groupby(tokens, self.marks.get)
        return "".join(mark * len([*group]) if mark else self._tokenizer.decode([*group]) for mark, group in groups)


def without_marks(text: str) -> str:
    """Return what a marked text says."""
    return re.sub("[\ud800-\udfff]", "", text)
