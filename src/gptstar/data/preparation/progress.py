"""The progress bar of a preparation, and a line for each finished corpus."""

import time
from collections.abc import Sequence
from itertools import accumulate

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gptstar.data.preparation.packing import CorpusState
from gptstar.data.text.corpora import Corpus, total_size
from gptstar.data.text.records import Record

REFRESH_SECONDS = 0.1


class PackingProgress(Progress):
    """Shows documents and tokens per second, and estimates the remaining time from the unread bytes."""

    def __init__(self, console: Console, corpora: Sequence[Corpus]) -> None:
        total = total_size(corpora)
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TextColumn("{task.percentage:>3.0f}%" if total else ""),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self.add_task("tokenising", total=total, speed="")
        self._n_documents = self._n_tokens = 0
        self._bytes_before = 0  # bytes of the finished corpora
        self._began = self._shown = time.monotonic()
        self._unit_starts: list[int] = []

    def begin_corpus(self, corpus: Corpus) -> None:
        """Show the name of a corpus that starts or resumes."""
        self.update(self._bar, description=corpus.name)
        self._unit_starts = list(accumulate((unit.size or 0 for unit in corpus.units), initial=self._bytes_before))
        self._bytes_before += corpus.size or 0

    def count(self, record: Record, n_tokens: int, n_documents: int) -> None:
        """Count a packed or skipped record."""
        self._n_documents += n_documents
        self._n_tokens += n_tokens
        now = time.monotonic()
        if now - self._shown > REFRESH_SECONDS:
            self._shown = now
            seconds = now - self._began
            speed = f"{self._n_documents / seconds:,.0f} documents/s, {self._n_tokens / seconds / 1e6:.2f}M tokens/s"
            self.update(self._bar, completed=self._unit_starts[record.unit] + record.offset, speed=speed)

    def end_corpus(self, corpus: Corpus, state: CorpusState) -> None:
        """Print the counts of a finished corpus."""
        n_documents, n_tokens = state.counts.get("documents", 0), sum(shard.tokens for shard in state.shards)
        others = [f"; {count:,} {what}" for what, count in state.counts.items() if what not in ("documents", "cleaned")]
        line = f"{corpus.name}: {n_documents:,} documents, {n_tokens:,} tokens{''.join(others)}"
        self.console.print(line, soft_wrap=True)
        self.update(self._bar, completed=self._bytes_before)
