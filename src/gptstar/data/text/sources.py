"""Documents from the user's own code: a class registered under the name that a corpus gives as its `source`.

docs/extending.md has an example.
"""

import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields

from gptstar.choices import Choices
from gptstar.data.text.records import Record, Skipped, Unit, document
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError, Refusal, with_type


@dataclass(frozen=True)
class Source:
    """A source of documents for a corpus: a frozen dataclass whose fields are its configuration keys.

    The same keys must give the same documents in the same order, on every machine and at every call: an interrupted
    preparation reads its part again and skips the documents it already has.
    """

    @property
    def n_parts(self) -> int:
        """Number of parts, such as files. Machines that share the work take whole parts."""
        return 1

    @property
    def size(self) -> int | None:
        """Approximate bytes of text in a part; None if unknown.

        A small corpus is read once in advance, so that at least one of its documents is held out.
        """
        return None

    @property
    def stamp(self) -> str:
        """Everything else that the text depends on besides keys and code, such as a hash of the files it reads."""
        return ""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer to use if this source is the only text; None: the same as for other text."""
        return None

    def documents(self, part: int) -> Iterator[str]:
        """Yield the text of each document of a part, from 0 to `n_parts - 1`."""
        raise NotImplementedError


SOURCES: Choices[Source] = Choices("data.corpora.*.source", tag="kind", is_word=True)


@dataclass(frozen=True)
class SourcePart(Unit):
    """A part of a source, read like a file."""

    source: Source
    part: int

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield the documents, without the first `start`; raise DataError with the place if the source fails."""
        number, offset = 0, 0
        try:
            for number, text in enumerate(self.source.documents(self.part), start=1):
                offset += len(text) if isinstance(text, str) else 0
                if number <= start:
                    continue
                if isinstance(text, str) and text and not text.isspace():
                    yield from document(text, number, offset)
                else:
                    reason = "empty" if isinstance(text, str) else f"a {type(text).__name__}, not a string"
                    yield Skipped(reason, f"{self.name}, document {number}", number, offset)
        except Refusal:
            raise
        except Exception as error:  # the user's code may raise anything
            where = f"{self.name}, after document {number}"
            raise DataError(f"{where}: {with_type(error)}") from error


def source_parts(source: Source) -> tuple[SourcePart, ...]:
    """List the parts of a source."""
    name, n_parts = SOURCES.name_of(source), source.n_parts
    return tuple(
        SourcePart(f"{name}, part {part + 1} of {n_parts}", source.size, source, part) for part in range(n_parts)
    )


def described(source: Source) -> str:
    """Describe a source in one line for the manifest, as in `mine(path=…) of package.module`."""
    keys = ", ".join(f"{field.name}={getattr(source, field.name)}" for field in fields(source))
    return f"{SOURCES.name_of(source)}({keys}) of {type(source).__module__}"


def identity_of(source: Source) -> str:
    """Hash the keys, the stamp, the number of parts and the class's file: a change of the hash means changed text."""
    try:
        code = inspect.getsource(inspect.getmodule(type(source)) or type(source))
    except (OSError, TypeError):  # the class was typed in a Python prompt
        code = ""
    words = [described(source), source.stamp, str(source.n_parts), code]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
