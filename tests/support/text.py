"""Made-up text, and what becomes of it: corpora, shards, benchmark items."""

import filecmp
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from gptstar.data.config import DataConfig
from gptstar.data.storage.shards import ShardFolder


def sentences(n_documents: int, words: int, seed: int) -> list[str]:
    """Documents of made-up English: a skewed vocabulary, so that there is something to learn."""
    random = np.random.default_rng(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    vocabulary = [a + b for a in syllables[::7] for b in syllables[::3]]
    weights = 1.0 / np.arange(1, len(vocabulary) + 1)
    return [" ".join(random.choice(vocabulary, words, p=weights / weights.sum())) for _ in range(n_documents)]


QUIET = Console(quiet=True)


def config(**changes: object) -> DataConfig:
    return DataConfig(**{"source": "local", "context_length": 32, "block_tokens": 64, "workers": 1, **changes})


def documents_of(folder: ShardFolder, split: str, corpus: str, stratum: str = "first") -> list[str]:
    texts = []
    for shard in folder.manifest.shards:
        if (shard.split, shard.corpus, shard.stratum) != (split, corpus, stratum):
            continue
        tokens = np.load(Path(folder.folder) / f"{shard.name}.npy")
        starts = np.load(Path(folder.folder) / f"{shard.name}.documents.npy").tolist()
        assert (len(tokens), len(starts)) == (shard.tokens, shard.documents)
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            assert tokens[stop - 1] == folder.tokenizer.end_of_text
            texts.append(folder.tokenizer.decode(tokens[start : stop - 1]))
    return texts


def write_corpus(folder: Path, documents: list[str], files: int = 1) -> str:
    folder.mkdir(parents=True)
    for number in range(files):
        share = documents[number * len(documents) // files : (number + 1) * len(documents) // files]
        lines = "".join(json.dumps({"text": each}) + "\n" for each in share)
        (folder / f"{number:03d}.jsonl").write_text(lines)
    return str(folder / "*.jsonl")


def same(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and not any(
        filecmp.cmpfiles(one, other, names, False)[1:]
    )


def write_tasks_files(folder: Path, n_items: int = 23) -> Path:
    """Files of made-up items for the five tasks, in the Hub's columns."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    texts = iter(sentences(20 * n_items, 12, seed=2))
    rows: dict[str, list[dict[str, Any]]] = {
        "lambada_openai": [{"text": next(texts)} for _ in range(n_items)],
        "wikitext": [{"page": f" = {next(texts)} = \n " + " , ".join(sentences(7, 20, seed))} for seed in range(5)],
        "piqa": [
            {"goal": next(texts), "sol1": next(texts), "sol2": next(texts), "label": draw.randrange(2)}
            for _ in range(n_items)
        ],
        "hellaswag": [
            {
                "ind": number,
                "activity_label": "Doing",
                "ctx_a": next(texts),
                "ctx_b": next(texts),
                "ctx": "",
                "endings": [next(texts) for _ in range(4)],
                "split": "val",
                "split_type": "indomain",
                "label": str(draw.randrange(4)),
                "source_id": f"activity~{number}",
            }
            for number in range(n_items)
        ],
        "winogrande": [
            {
                "sentence": f"{next(texts)} _ {next(texts)}",
                "option1": next(texts).split()[0],
                "option2": next(texts).split()[1],
                "answer": str(draw.randrange(1, 3)),
            }
            for _ in range(n_items)
        ],
    }
    for task, items in rows.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder
