"""Looking at prepared text before a run is spent on it: tables, samples and a picture."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gptstar.data.inspection.lengths import Lengths
from gptstar.data.storage.documents import bounds, document_beginning, shards_of
from gptstar.data.storage.manifest import Manifest, Split
from gptstar.data.storage.shards import ShardFolder

SAMPLE_CHARACTERS = 300
SAMPLE_TOKENS = 4 * SAMPLE_CHARACTERS
"""A token is a byte at least, and a character four bytes at most."""
QUANTILES = 0.0, 0.05, 0.5, 0.95, 1.0


def inspect(folder: ShardFolder, console: Console, samples: int, picture: Path | None, seed: int) -> None:
    """Show what a folder of shards holds. Of its tokens, only those of the samples are read.

    Args:
        samples: documents to show of each corpus.
        picture: where to draw the lengths of documents.
        seed: of the samples.

    Raises:
        DataError: a file is damaged, can't be read, or the picture can't be written.
    """
    manifest = folder.manifest
    lengths = {corpus: lengths_of(folder, "train", corpus) for corpus in folder.corpora("train")}
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
        from gptstar.data.inspection.pictures import plot_document_lengths  # matplotlib takes its time

        plot_document_lengths(lengths, picture)
        console.print(f"document lengths in {picture}", soft_wrap=True, highlight=False, markup=False)


def shard_table(manifest: Manifest) -> Table:
    """How much text there is of each corpus in each split, and how much of the training mixture it makes up."""
    shares = mixture_shares(manifest)
    table = Table(title="tokens by corpus", box=SIMPLE_HEAD)
    for column in ("corpus", "split"):
        table.add_column(column, overflow="fold")
    for column in ("documents", "tokens", "B/token", "mixture"):
        table.add_column(column, justify="right", overflow="fold")  # in a narrow terminal no figure is cut short
    for corpus, split in dict.fromkeys((shard.corpus, shard.split) for shard in manifest.shards):
        n_documents, n_tokens, n_bytes = (manifest.total(split, w, corpus) for w in ("documents", "tokens", "bytes"))
        source = manifest.sources[corpus]
        read = f"{source.epochs:g} ×" if source.weight is None else f"weight {source.weight:g}"
        mixture = f"{shares[corpus]:.1%} ({read})" if split == "train" else ""
        amounts = f"{n_documents:,}", f"{n_tokens:,}", f"{n_bytes / n_tokens:.2f}"
        table.add_row(escape(corpus), split, *amounts, mixture)
    return table


def mixture_shares(manifest: Manifest) -> dict[str, float]:
    """Of the tokens that a run reads, those of each corpus: by its weight, or by its tokens and epochs."""
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
    """What became of the documents of each corpus, and where what was left out was first met."""
    table = Table(title="what became of the documents", box=SIMPLE_HEAD)
    table.add_column("corpus", overflow="fold")
    table.add_column("what")
    table.add_column("documents", justify="right")
    table.add_column("first met in", overflow="fold")
    for corpus, source in manifest.sources.items():
        for what, count in source.counts.items():
            places = "\n".join(printable(place) for place in source.examples.get(what, []))
            table.add_row(escape(corpus), escape(what), f"{count:,}", escape(places))
    return table


def lengths_table(lengths: dict[str, Lengths]) -> Table:
    """Quantiles of the lengths of documents."""
    table = Table(title="tokens in a document to train on, end-of-text included", box=SIMPLE_HEAD)
    table.add_column("corpus", overflow="fold")
    for quantile in QUANTILES:
        name = {0.0: "least", 0.5: "median", 1.0: "most"}.get(quantile, f"{quantile:.0%}")
        table.add_column(name, justify="right", overflow="fold")
    for corpus, those in lengths.items():
        table.add_row(escape(corpus), *(f"{those.quantile(quantile):,}" for quantile in QUANTILES))
    return table


def origin_table(manifest: Manifest) -> Table:
    """Where the text came from and what was done to it."""
    table = Table(title="origin", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for corpus, source in manifest.sources.items():
        table.add_row(escape(corpus), escape(f"{printable(source.source)} (licence: {source.licence})"))
    for option, value in manifest.options.items():
        table.add_row(escape(option), escape(value))
    table.add_row("tokenizer", f"{manifest.n_vocab:,} tokens, {manifest.tokenizer}")
    table.add_row("fingerprint", manifest.fingerprint)
    return table


def lengths_of(folder: ShardFolder, split: Split, corpus: str) -> Lengths:
    """The lengths of a corpus's documents in tokens, read shard by shard."""
    return Lengths.of(bounds(folder, shard) for shard in shards_of(folder, split, corpus))


def sampled(n_documents: int, count: int, seed: str) -> Iterator[int]:
    """Numbers of some documents, different ones, in their order."""
    return iter(sorted(random.Random(seed).sample(range(n_documents), max(0, min(count, n_documents)))))


def printable(text: str) -> str:
    """Text that does nothing to a terminal but show: control characters are written as escapes."""
    return "".join(
        character if character.isprintable() or character == "\n" else character.encode("unicode-escape").decode()
        for character in text
    )
