"""Documents from a user's own code: a class that is registered under the name a corpus gives as its `source`.

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
    """Where the documents of a corpus come from: a frozen dataclass whose fields are its keys in a configuration.

    The same keys have to give the same documents in the same order, on every machine and at every call: what was
    interrupted reads the part that it was in again, and leaves out what it has.
    """

    @property
    def n_parts(self) -> int:
        """How many parts there are, such as files. Machines that share the work take whole parts."""
        return 1

    @property
    def size(self) -> int | None:
        """Bytes of text in a part, roughly; None where unknown.

        A small corpus is read once more beforehand, so that at least one of its documents is held out.
        """
        return None

    @property
    def stamp(self) -> str:
        """What the text depends on beside the keys and the class's file, such as a hash of the files it reads."""
        return ""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer for text of this source alone; None: as for any text."""
        return None

    def documents(self, part: int) -> Iterator[str]:
        """Yield the text of each document of a part, from 0 to `n_parts - 1`."""
        raise NotImplementedError


SOURCES: Choices[Source] = Choices("data.corpora.*.source", tag="kind", is_word=True)


@dataclass(frozen=True)
class SourcePart(Unit):
    """A part of a source, to be read as a file is."""

    source: Source
    part: int

    def read(self, start: int = 0) -> Iterator[Record]:
        """Yield its documents, without the first `start`. Raises DataError, with the place, if the source fails."""
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
        except Exception as error:  # of the user's code
            where = f"{self.name}, after document {number}"
            raise DataError(f"{where}: {with_type(error)}") from error


def source_parts(source: Source) -> tuple[SourcePart, ...]:
    """List the parts of a source."""
    name, n_parts = SOURCES.name_of(source), source.n_parts
    return tuple(
        SourcePart(f"{name}, part {part + 1} of {n_parts}", source.size, source, part) for part in range(n_parts)
    )


def described(source: Source) -> str:
    """Describe a source in one line for the manifest: `mine(path=…) of package.module`."""
    keys = ", ".join(f"{field.name}={getattr(source, field.name)}" for field in fields(source))
    return f"{SOURCES.name_of(source)}({keys}) of {type(source).__module__}"


def identity_of(source: Source) -> str:
    """Hash the keys, the stamp, the number of parts and the file of the class: another hash means another text."""
    try:
        code = inspect.getsource(inspect.getmodule(type(source)) or type(source))
    except (OSError, TypeError):  # typed at a prompt
        code = ""
    words = [described(source), source.stamp, str(source.n_parts), code]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
