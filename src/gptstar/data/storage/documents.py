"""The documents of a folder of shards: where each one is, and its text."""

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np

from gptstar.data.storage.manifest import AGAIN, Shard, Split, Stratum
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import DataError


def bounds(folder: ShardFolder, shard: Shard) -> np.ndarray:
    """`(document + 1,)`, int64: where each document of a shard begins, and where the last one ends.

    Raises:
        DataError: the file that says so is damaged, missing or can't be reached; names it.
    """
    name = f"{shard.name}.documents.npy"
    where = f"{folder.folder}/{name}"
    try:
        content = folder.cache.files.read(name) if folder.cache else (Path(folder.folder) / name).read_bytes()
        starts = np.load(io.BytesIO(content)).astype(np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{where} can't be read ({error}): {AGAIN}") from error
    ends = np.append(starts, shard.tokens)
    if len(starts) != shard.documents or ends[0] or (np.diff(ends) < 1).any():
        raise DataError(f"{where} is damaged (it does not cut {shard.tokens:,} tokens into documents): {AGAIN}")
    return ends


def documents(folder: ShardFolder, split: Split, corpus: str) -> Iterator[str]:
    """The text of each document of a corpus, in the order of the shards."""
    for stratum in get_args(Stratum):
        stream, before = folder.stream(split, corpus, stratum), 0
        for shard in shards_of(folder, split, corpus, stratum):
            for start, end in pairwise(bounds(folder, shard).tolist()):
                yield folder.tokenizer.decode(stream.read(before + start, end - start).tolist())
            before += shard.tokens


def document_beginning(folder: ShardFolder, split: Split, corpus: str, number: int, n_tokens: int) -> tuple[str, int]:
    """The text of a document's first tokens, and how many it has in all.

    Args:
        number: of the document in the order of `documents`, from 0.
    """
    for stratum in get_args(Stratum):
        before = 0
        for shard in shards_of(folder, split, corpus, stratum):
            if number < shard.documents:
                start, end = bounds(folder, shard)[number : number + 2].tolist()
                tokens = folder.stream(split, corpus, stratum).read(before + start, min(n_tokens, end - start))
                return folder.tokenizer.decode(tokens.tolist()), end - start
            number -= shard.documents
            before += shard.tokens
    raise IndexError(number)


def shards_of(folder: ShardFolder, split: Split, corpus: str, stratum: Stratum | None = None) -> list[Shard]:
    """The shards of a corpus in a split, or in a stratum of it, in their order."""
    shards = [shard for shard in folder.manifest.shards if (shard.split, shard.corpus) == (split, corpus)]
    return [shard for shard in shards if stratum in (None, shard.stratum)]
