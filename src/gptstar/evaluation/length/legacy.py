"""The estimator that GPT* was published with, to the letter, so that its tables can be repeated.

Text is one stream of tokens, without any end-of-text, cut into windows of T. The last, partial window is skipped. A
window's loss is the mean over its T - 1 targets. On WikiText-2 that mean, times T, is summed and divided by all tokens,
those of the skipped window too: a curve over T dips where much is skipped. On enwik8 and text8 the windows are averaged
and the average is multiplied by tokens per byte. The original read by float16 autocast: `evaluation.dtype=float16`.

Source: fattorib/Little-GPT, `benchmark/benchmark_metrics.py`, after Hugging Face's "Perplexity of fixed-length models".
"""

import io
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gptstar.data.storage.stream import TokenStream
from gptstar.data.text.readers import form_of
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.evaluation.length.config import LengthConfig
from gptstar.evaluation.length.figures import LengthResult, perplexity_of
from gptstar.evaluation.length.protocols import Window
from gptstar.evaluation.length.text import Text, encode, find, plain_text, source_of_files, texts_of
from gptstar.evaluation.statistics.intervals import Interval

LAST_BYTES = 5_000_000
"""The test set of enwik8 and text8."""


def legacy_text(tokenizer: Tokenizer, config: LengthConfig) -> tuple[Text, int]:
    """Read the stream that the original read, and count its bytes.

    For perplexity, rows are joined by two line breaks: those of Parquet and JSON lines, or the lines of a raw file as
    the Hub's `wikitext-2-raw-v1` has them, blank ones empty and others with their line break.

    Raises:
        DataError: a file can't be read or is not text.
    """
    files = find(config)
    if config.legacy_metric == "perplexity":
        whole = "\n\n".join(row for address in files for row in _rows(address, config))
    else:
        whole = "".join(
            text for address in files for text in texts_of(address, config, config.last_bytes or LAST_BYTES)
        )
    tokens = encode(tokenizer, [whole])[0][: config.max_tokens]
    n_bytes = len(whole.encode()) if config.max_tokens is None else int(tokenizer.token_bytes[tokens].sum())
    name = ", ".join(address.rpartition("/")[2] for address in files)
    return Text(name, source_of_files(files), (TokenStream([tokens]),), tokenizer.token_bytes), n_bytes


def _rows(address: str, config: LengthConfig) -> list[str]:
    if form_of(address) in ("jsonl", "parquet"):
        return list(texts_of(address, config, config.last_bytes))
    lines = io.StringIO(plain_text(address, config.last_bytes), newline="\n")
    return [line if line.strip() else "" for line in lines]


class LegacyPlan:
    """The windows and figures of the published estimator; it has the attributes of `curve.Plan`."""

    reference, units, targets = None, "", ""
    counts: tuple[int, ...] = ()

    def __init__(self, text: Text, n_bytes: int, config: LengthConfig, lengths: Sequence[int]) -> None:
        """Plan whole windows side by side, on a text of `n_bytes`.

        Raises:
            DataError: the text is shorter than one window of the longest length.
        """
        self.text, self.n_bytes, self.lengths = text, n_bytes, lengths
        self._metric, self._n_tokens = config.legacy_metric, len(text.documents[0])
        if self._n_tokens < max(lengths):
            raise DataError(
                f"the text has {self._n_tokens:,} tokens, less than one window of {max(lengths):,}: read shorter "
                f"contexts ({config.KEY}.context_lengths), or longer text ({config.KEY}.text)"
            )

    def windows(self, length: int) -> list[Window]:
        """Return whole windows of `length` tokens, each with `length - 1` targets."""
        starts = range(0, self._n_tokens - length + 1, length)
        return [
            Window(0, start, start + length - 1, length - 1, number * (length - 1))
            for number, start in enumerate(starts)
        ]

    def with_figures(self, result: LengthResult, losses: np.ndarray, _: np.ndarray | None) -> LengthResult:
        """Return loss, perplexity and bits per byte as published, without intervals, from the losses of all windows."""
        length, n_tokens = result.context_length, self._n_tokens
        means = losses.reshape(-1, length - 1).astype(np.float64).mean(axis=1)  # (window,)
        value = float(means.sum() * length / n_tokens if self._metric == "perplexity" else means.mean())
        loss = Interval(value, math.nan, math.nan, "none")
        bits = replace(loss, value=value / math.log(2) * n_tokens / self.n_bytes)
        return replace(result, loss=loss, perplexity=perplexity_of(loss), bits_per_byte=bits)

    def positions(self, *_: np.ndarray) -> tuple[()]:
        """Return nothing: loss by position was not published."""
        return ()
