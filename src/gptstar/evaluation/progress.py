"""Progress display of a study: a bar in a terminal, elsewhere one line per tenth."""

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import Progress, TaskID

from gptstar.terminal import Tenths


class StudyProgress:
    """A counter of the tokens that a study has read, which updates the progress display."""

    def __init__(self, bar: Progress, task: TaskID, tenths: Tenths, verb: str) -> None:
        self._bar, self._task, self._tenths, self._verb = bar, task, tenths, verb

    def turn_to(self, name: str) -> None:
        """Show the name of the next checkpoint."""
        self._bar.update(self._task, description=f"{self._verb} {name}")

    def advance(self, tokens: int) -> None:
        """Add tokens that were read."""
        self._bar.advance(self._task, tokens)
        self._tenths.advance(tokens)


@contextlib.contextmanager
def study_progress(console: Console, verb: str, n_tokens: int) -> Iterator[StudyProgress]:
    """Show the progress of a study over `n_tokens`; `verb` describes the work, such as `reading`."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        yield StudyProgress(bar, bar.add_task(verb, total=n_tokens), Tenths(console, verb, n_tokens), verb)
