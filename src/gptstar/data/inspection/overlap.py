"""Find benchmark items in the training text, by runs of 13 words that both contain.

As in appendix C of the GPT-3 paper (https://arxiv.org/abs/2005.14165): lower case, no punctuation, 13 words in a row,
where a word is a run of letters and digits (`grams.words`). An item with fewer than 13 words can't be tested, and is
counted as such. A gram is reported only after its words were compared, never by its hash alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text

from gptstar.data.inspection.benchmark_items import Benchmark
from gptstar.data.inspection.grams import GRAM_WORDS, GramIndex
from gptstar.data.storage.documents import documents
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import DataError

Report = dict[str, dict[str, Any]]
"""A report for each benchmark, as plain values:

- `items`: number of items;
- `too_short`: rows that can't be tested, because they have fewer than 13 words;
- `dirty`: rows that share a gram with any corpus; rows that are neither dirty nor too short are clean;
- `corpora`: for each corpus, the items that share a gram, by row: number of `grams` of the item, number of them
  `found`, their `share`, the first `document` with one of them, and its `words`.

Rows and documents are counted from 0. A long page with one shared quotation has a small share.
"""


def report(documents_by_corpus: Mapping[str, Iterable[str]], index: GramIndex) -> Report:
    """Search for all items in all documents, which must be complete texts."""
    overlap: Report = {
        name: {
            "items": n_items,
            "too_short": [],
            "dirty": [],
            "corpora": {corpus: [] for corpus in documents_by_corpus},
        }
        for name, n_items in index.benchmarks.items()
    }
    for name, row in map(index.item, np.flatnonzero(index.grams == 0).tolist()):
        overlap[name]["too_short"].append(row)
    for corpus, texts in documents_by_corpus.items():
        first_document: dict[int, int] = {}  # for each gram of a benchmark, in order of discovery
        for document, text in enumerate(texts):
            for grams in index.find(text):
                for gram in grams.tolist():
                    first_document.setdefault(gram, document)
        turns = {gram: turn for turn, gram in enumerate(first_document)}
        by_item: dict[int, list[int]] = {}
        for gram, item in index.pairs(np.asarray(list(first_document), dtype=np.int64)).T.tolist():
            by_item.setdefault(item, []).append(gram)
        for item, grams_met in sorted(by_item.items()):
            name, row = index.item(item)
            gram = min(grams_met, key=turns.__getitem__)
            n_grams, n_met = int(index.grams[item]), len(grams_met)
            hit: dict[str, Any] = {"row": row, "grams": n_grams, "found": n_met, "document": first_document[gram]}
            hit |= {"words": index.gram_text(gram), "share": n_met / n_grams}
            overlap[name]["corpora"][corpus].append(hit)
    for of_benchmark in overlap.values():
        of_benchmark["dirty"] = sorted({hit["row"] for hits in of_benchmark["corpora"].values() for hit in hits})
    return overlap


def overlap_table(overlap: Report) -> Table:
    """Make a table with a line for each benchmark and corpus."""
    table = Table(title=f"items that share {GRAM_WORDS} consecutive words with the training text", box=SIMPLE_HEAD)
    for column in ("benchmark", "corpus"):
        table.add_column(column, overflow="fold")
    for column in ("items", "testable", "hit", "share", "most"):
        table.add_column(column, justify="right")
    table.add_column("for example", overflow="fold")
    for name, of_benchmark in overlap.items():
        n_items = of_benchmark["items"]
        testable = n_items - len(of_benchmark["too_short"])
        for corpus, hits in of_benchmark["corpora"].items():
            row: list[str | Text] = [Text(name), Text(corpus), f"{n_items:,}", f"{testable:,}", f"{len(hits):,}"]
            row.append(f"{len(hits) / testable:.1%}" if testable else "")
            if hits:
                worst = max(hits, key=lambda hit: hit["share"])
                row.append(f"{worst['share']:.1%}")
                row.append(Text(f"row {worst['row']}, document {worst['document']}: {worst['words']}"))
            table.add_row(*row)
    return table


def overlap_of_shards(shards: Path | str, benchmarks: Sequence[Path], console: Console, path: Path | None) -> None:
    """Search all training documents of a folder of shards for benchmark items, and print what they share.

    Args:
        path: file for the `Report` as JSON, with the shards' fingerprint.

    Raises:
        DataError: a benchmark or the shards can't be read, or the result can't be written.
    """
    index, folder = GramIndex([Benchmark.from_file(benchmark) for benchmark in benchmarks]), ShardFolder(shards)

    def texts(corpus: str) -> Iterable[str]:
        those, n_documents = documents(folder, "train", corpus), folder.manifest.total("train", "documents", corpus)
        return track(those, escape(corpus), n_documents, console=console, disable=not console.is_terminal)

    overlap = report({corpus: texts(corpus) for corpus in folder.corpora("train")}, index)
    console.print(overlap_table(overlap))
    if path is not None:
        content = {"shards": folder.manifest.fingerprint, "benchmarks": overlap}
        try:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"can't write {path}: {error.strerror}: name a file in a folder that exists") from error
