"""A study of attention heads, from a checkpoint to tables, a picture and `results.json`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from gptstar.checkpoint.format import Checkpoint
from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.heads.config import HeadsConfig
from gptstar.evaluation.heads.figures import HeadsResult, head_results
from gptstar.evaluation.heads.pictures import plot_heads
from gptstar.evaluation.heads.prediction import Reach, keeps_subnormals, reach_of
from gptstar.evaluation.heads.sums import Sums, summing
from gptstar.evaluation.heads.tables import heads_markdown, heads_table
from gptstar.evaluation.length.figures import Units
from gptstar.evaluation.length.protocols import Window, last_blocks
from gptstar.evaluation.length.reading import CPU_BATCH_TOKENS, batches, measured
from gptstar.evaluation.length.source import Named, lengths_of, tokenizer_of
from gptstar.evaluation.length.text import Text, text_of_files, text_of_shards
from gptstar.evaluation.precision import computing_in
from gptstar.evaluation.results import FILE_NAME, write_study
from gptstar.model import GPT
from gptstar.model.positions import POSITIONS


@dataclass(frozen=True)
class HeadsStudy:
    """The results of a study.

    Attributes:
        positions: the name of the kind of positions.
        reaches: how far each head sees for equal content; None if neither slopes nor a window limit it.
        units: the kind and number of independent units for intervals: `documents` or `stretches`.
    """

    name: str
    trained_at: int
    positions: str
    reaches: tuple[Reach, ...] | None
    units: str
    lengths: tuple[HeadsResult, ...]

    @property
    def slopes(self) -> list[float] | None:
        """The slope of each head; None for positions without slopes."""
        slopes = [each.slope for each in self.reaches or () if each.slope is not None]
        return slopes or None


class Windows:
    """The windows that a study reads: they end with the same tokens at every length."""

    def __init__(self, text: Text, lengths: Sequence[int], n_queries: int, limit: int) -> None:
        """Choose the tokens whose weights are measured.

        Raises:
            DataError: no document is as long as the longest context.
        """
        longest, most = max(lengths), int(text.sizes.max(initial=0))
        if most <= longest:
            raise DataError(
                f"no document is longer than {longest:,} tokens, the longest context, but at most {most:,}: read "
                "shorter contexts, other text, or give documents=joined"
            )
        self._spans = last_blocks(text.sizes, longest, n_queries, limit)
        units = Units(self._spans, longest)
        self.text, self.n_queries = text, n_queries
        self.units = f"{units.count:,} {units.name}"
        self.unit_of = units.numbers[[span.at for span in self._spans]]

    def of(self, length: int) -> list[Window]:
        """Return the windows of `length` tokens; `at` is their number."""
        return [
            Window(span.document, span.stop - length, span.stop, self.n_queries, number)
            for number, span in enumerate(self._spans)
        ]


def study(
    named: Named,
    config: HeadsConfig,
    *,
    shards: str | None,
    device: torch.device,
    console: Console,
    output: Path,
) -> HeadsStudy:
    """Measure how each head distributes its weight, print a table, and write `heads.png`, `results.md`, `results.json`.

    Args:
        named: the identity of a checkpoint, and the checkpoint.
        shards: a folder of text; by default `config.text`, or what the checkpoint was trained with.

    Raises:
        ConfigError, DataError: text, lengths or training context don't fit; raised before anything is read.
    """
    identity, checkpoint = named
    name, trained_at = str(identity["name"]), checkpoint.trained_at or config.trained_at
    if trained_at is None:
        raise ConfigError(f"{name} does not know its training context: give {config.KEY}.trained_at")
    lengths = lengths_of([named], config.reading)
    windows = Windows(_text(name, checkpoint, config, shards), lengths, config.queries_of(lengths), config.max_queries)
    model = checkpoint.build().to(device)
    found = HeadsStudy(
        name=name,
        trained_at=trained_at,
        positions=POSITIONS.name_of(checkpoint.model.positions),
        reaches=_reaches(model, device),
        units=windows.units,
        lengths=(),
    )
    results = [
        _read(model, windows, found, length, config)
        for length in track(lengths, "reading", console=console, transient=True, disable=not console.is_terminal)
    ]
    found = replace(found, lengths=tuple(results))
    console.print(heads_table(found))
    _write(found, windows.text, config, identity=dict(identity), output=output)
    console.print(f"in {output}: heads.png, results.md, {FILE_NAME}", soft_wrap=True, highlight=False)
    return found


def _text(name: str, checkpoint: Checkpoint, config: HeadsConfig, shards: str | None) -> Text:
    """Return the text of a study of context length: held-out shards as one stream, files as separate documents."""
    tokenizer, folder = tokenizer_of(name, checkpoint, config.reading, shards)
    if folder is None:
        return text_of_files(tokenizer, config.reading)
    return text_of_shards(folder, joined=config.documents != "apart")


def _reaches(model: GPT, device: torch.device) -> tuple[Reach, ...] | None:
    slopes, mask = model.positions.slopes(model.config.n_heads, torch.device("cpu")), model.config.mask
    if slopes is None and mask.window is None:
        return None
    by_head: list[float | None] = [None] * model.config.n_heads if slopes is None else slopes.tolist()
    kept = keeps_subnormals(device)
    return tuple(reach_of(slope, keeps_subnormals=kept, mask=mask) for slope in by_head)


@torch.inference_mode()
def _read(model: GPT, windows: Windows, known: HeadsStudy, length: int, config: HeadsConfig) -> HeadsResult:
    """Read all windows at a length."""
    device = model.token_embedding.weight.device
    read, n_queries = windows.of(length), windows.n_queries
    edges = tuple(sorted({round(2 ** (half / 2)) for half in range(2 * length.bit_length())} & {*range(length)}))
    result = HeadsResult(length, len(read) * n_queries, edges)
    if (capacity := model.positions.capacity) is not None and length > capacity:
        return result
    sums = Sums(len(read), n_queries, model, known.trained_at, edges)
    batch_tokens = config.batch_tokens or batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens
    with measured(device) as cost, computing_in(torch.float32, device):
        for batch in batches(read, batch_tokens):
            tokens = np.stack([windows.text.documents[each.document].read(each.start, length) for each in batch])
            with summing(model, sums, slice(batch[0].at, batch[-1].at + 1)):
                model.hidden(torch.from_numpy(tokens.astype(np.int64)).to(device))
    heads = head_results(sums, windows.unit_of, known.reaches, known.trained_at, length, config.seed)
    return HeadsResult(length, result.queries, edges, cost.seconds, cost.memory, heads)


def _write(found: HeadsStudy, text: Text, config: HeadsConfig, *, identity: dict[str, object], output: Path) -> None:
    """Write the picture, `results.md` and, last and atomically, `results.json`."""
    output.mkdir(parents=True, exist_ok=True)
    plot_heads(found, output / "heads.png", text.name)
    (output / "results.md").write_text(heads_markdown(found, text.name), encoding="utf-8")
    write_study(output, "heads", config, text=text.source, checkpoint=identity, **asdict(found))
