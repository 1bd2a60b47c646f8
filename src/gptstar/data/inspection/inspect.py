"""Inspect prepared text before training on it: tables, samples and a picture."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gptstar.data.storage.documents import Lengths, document_beginning
from gptstar.data.storage.manifest import Manifest, Size
from gptstar.data.storage.shards import ShardFolder

SAMPLE_CHARACTERS = 300
SAMPLE_TOKENS = 4 * SAMPLE_CHARACTERS
"""Tokens to read for a sample: a token has at least one byte, and a character at most four bytes."""
QUANTILES = 0.0, 0.05, 0.5, 0.95, 1.0


def inspect(folder: ShardFolder, console: Console, samples: int, picture: Path | None, seed: int) -> None:
    """Print the contents of a folder of shards. Only the tokens of the samples are read.

    Args:
        samples: number of documents to show per corpus.
        picture: file for a picture of document lengths.

    Raises:
        DataError: a file is damaged or can't be read, or the picture can't be written.
    """
    manifest = folder.manifest
    lengths = {corpus: Lengths.of(folder, "train", corpus) for corpus in folder.corpora("train")}
    console.print(shard_table(manifest))
    console.print(documents_table(manifest))
    console.print(lengths_table(lengths))
    console.print(origin_table(manifest))
    for corpus in lengths:
        for number in sampled(manifest.total("train", "documents", corpus), samples, f"{seed}/{corpus}"):
            text, n_tokens = document_beginning(folder, "train", corpus, number, SAMPLE_TOKENS)
            console.rule(Text(f"{corpus}, document {number:,}, {n_tokens:,} tokens"))
            console.print(Text(printable(text[:SAMPLE_CHARACTERS])))
    if picture is not None:
        from gptstar.data.inspection.pictures import plot_document_lengths  # importing matplotlib is slow

        plot_document_lengths(lengths, picture)
        console.print(f"document lengths in {picture}", soft_wrap=True, highlight=False)


def shard_table(manifest: Manifest) -> Table:
    """Make a table of each corpus's text in each split, and of its share of the training mixture."""
    shares = mixture_shares(manifest)
    figures = ("documents", "tokens", "B/token", "mixture")  # fold, so that a narrow terminal truncates no name
    table = _table("tokens by corpus", ("corpus", "split"), figures)
    for corpus, split in dict.fromkeys((shard.corpus, shard.split) for shard in manifest.shards):
        n_documents, n_tokens, n_bytes = (manifest.total(split, size, corpus) for size in get_args(Size))
        source = manifest.sources[corpus]
        read = f"{source.epochs:g} ×" if source.weight is None else f"weight {source.weight:g}"
        mixture = f"{shares[corpus]:.1%} ({read})" if split == "train" else ""
        amounts = f"{n_documents:,}", f"{n_tokens:,}", f"{n_bytes / n_tokens:.2f}"
        table.add_row(Text(corpus), split, *amounts, mixture)
    return table


def mixture_shares(manifest: Manifest) -> dict[str, float]:
    """Compute each corpus's share of the tokens that a run reads, from its weight, or from its tokens and epochs."""
    read: dict[str, float] = {}
    for shard in manifest.shards:
        if shard.split == "train":
            source = manifest.sources[shard.corpus]
            epochs = round(source.epochs, 9)
            times = math.ceil(epochs) if shard.stratum == "first" else math.floor(epochs)
            tokens = read.get(shard.corpus, 0.0) + times * shard.tokens
            read[shard.corpus] = tokens if source.weight is None else source.weight
    total = sum(read.values())
    return {corpus: tokens / total for corpus, tokens in read.items()}


def documents_table(manifest: Manifest) -> Table:
    """Make a table of what happened to each corpus's documents, with the first places of skipped ones."""
    table = _table("what became of the documents", ("corpus", "what"), ("documents",))
    table.add_column("first met in", overflow="fold")
    for corpus, source in manifest.sources.items():
        for what, count in source.counts.items():
            places = "\n".join(printable(place) for place in source.examples.get(what, []))
            table.add_row(Text(corpus), Text(what), f"{count:,}", Text(places))
    return table


def lengths_table(lengths: dict[str, Lengths]) -> Table:
    """Make a table of quantiles of document lengths."""
    names = [{0.0: "least", 0.5: "median", 1.0: "most"}.get(quantile, f"{quantile:.0%}") for quantile in QUANTILES]
    table = _table("tokens in a document to train on, end-of-text included", ("corpus",), names)
    for corpus, those in lengths.items():
        table.add_row(Text(corpus), *(f"{those.quantile(quantile):,}" for quantile in QUANTILES))
    return table


def _table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    """Make a table with left-aligned columns of words and right-aligned columns of figures."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in words:
        table.add_column(column, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right", overflow="fold")
    return table


def origin_table(manifest: Manifest) -> Table:
    """Make a table of the origin and the treatment of the text."""
    table = Table(title="origin", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for corpus, source in manifest.sources.items():
        table.add_row(Text(corpus), Text(f"{printable(source.source)} (licence: {source.licence})"))
    for option, value in manifest.options.items():
        table.add_row(Text(option), Text(value))
    table.add_row("tokenizer", f"{manifest.n_vocab:,} tokens, {manifest.tokenizer}")
    table.add_row("fingerprint", manifest.fingerprint)
    return table


def sampled(n_documents: int, count: int, seed: str) -> list[int]:
    """Draw distinct document numbers at random, in ascending order."""
    return sorted(random.Random(seed).sample(range(n_documents), max(0, min(count, n_documents))))


def printable(text: str) -> str:
    """Replace control characters by escapes, so that a terminal only displays the text."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode-escape").decode()
        for character in text
    )
