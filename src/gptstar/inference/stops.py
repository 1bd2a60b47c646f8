"""Stop strings, which may name special tokens."""

import re
from collections.abc import Sequence
from itertools import groupby

from gptstar.data.tokenizer import Tokenizer


class Stops:
    """Stop strings, which are searched in marked text: special tokens that a stop string names become marks.

    Special tokens add nothing to a text, so their names would not be found in it. A mark is a lone surrogate, which
    decoded text never contains.

    Attributes:
        marks: mark of each named special token, by token number.
        strings: the stop strings as given, and with marks instead of names of special tokens.
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
        """Return the text of tokens with marks."""
        groups = groupby(tokens, self.marks.get)
        return "".join(mark * len([*group]) if mark else self._tokenizer.decode([*group]) for mark, group in groups)


def without_marks(text: str) -> str:
    """Return a marked text without its marks."""
    return re.sub("[\ud800-\udfff]", "", text)
