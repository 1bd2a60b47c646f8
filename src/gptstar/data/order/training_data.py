"""The data of a run: streams of shards, cut into windows and mixed as configured."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from gptstar.data.config import CorpusConfig, DataConfig
from gptstar.data.order.mixture import Mixture
from gptstar.data.order.permutation import Grouping
from gptstar.data.order.windows import DocumentBlocks, Windows
from gptstar.data.storage.documents import bounds
from gptstar.data.storage.manifest import Split, Stratum
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import ConfigError, DataError


def training_data(folder: ShardFolder, config: DataConfig) -> tuple[Windows, Mixture, dict[str, int]]:
    """Build the training windows, the mixture that orders them, and each corpus's number of blocks in it.

    Corpora are mixed as configured, or by default as they were when the shards were prepared.

    Raises:
        DataError: the shards hold no block, or not the documents that a corpus's epochs need.
        ConfigError: weights lack `mixture_tokens`, a corpus is not in the shards, or the shards can't be cut into such
            windows.
    """
    names = folder.corpora("train")
    unknown = [name for name in config.corpora if name not in folder.manifest.sources]
    if unknown:
        raise ConfigError(
            f"data.corpora.{unknown[0]} is not in {folder.folder}, which holds {', '.join(names)}: name only these, or "
            "choose other shards"
        )
    corpora = {}
    for name in names:
        source = folder.manifest.sources[name]
        prepared = CorpusConfig(epochs=source.epochs, weight=source.weight)
        corpora[name] = corpus = config.corpora.get(name, prepared)
        all_there = corpus.fraction == prepared.fraction and (prepared.epochs >= 1.0 or corpus.epochs < 1.0)
        if not all_there and (corpus.fraction or prepared.fraction):
            share = f"epochs={corpus.epochs:g}" if corpus.weight is None else f"weight={corpus.weight:g}"
            raise DataError(
                f"the shards in {folder.folder} hold {name} for epochs={prepared.epochs:g}, not {share}: prepare the "
                "text again in another data.shards"
            )
    streams = list(dict.fromkeys((s.corpus, s.stratum) for name in names for s in folder.shards("train", name)))
    windows = windows_of(folder, "train", streams, config)
    if not windows.n_blocks:
        raise DataError(
            f"{folder.folder} has fewer training tokens than one block of {config.block_tokens}: add text, or lower "
            "data.block_tokens"
        )
    if config.query_mark is not None and folder.cache is None and not windows.has_answers:
        raise ConfigError(
            f"data.query_mark={config.query_mark!r} does not occur in the text of {folder.folder}, so there would be "
            "nothing to learn: give a mark that is one token in that text, or data.query_mark=null"
        )
    blocks = dict(zip(streams, windows.stream_blocks, strict=True))
    tokens = config.shuffle_tokens
    grouping = Grouping.of_tokens(tokens, config.block_tokens) if tokens is not None else None
    weights = {name: corpus.weight for name, corpus in corpora.items() if corpus.weight is not None}
    if not weights:
        mixture = Mixture.from_epochs(blocks, {name: each.epochs for name, each in corpora.items()}, grouping)
    elif config.mixture_tokens is None or len(weights) < len(names):
        raise ConfigError(
            "data.corpora: if one corpus has a weight, every corpus needs one, and data.mixture_tokens=N is the number "
            "of tokens that they share: give all of these, or no weight"
        )
    else:
        by_corpus = {name: count for (name, _), count in blocks.items()}
        mixture = Mixture.from_weights(by_corpus, weights, config.mixture_tokens, config.block_tokens, grouping)
    mixed = dict.fromkeys(names, 0)
    for (name, _), entry in zip(streams, mixture.entries, strict=True):
        mixed[name] += entry.count
    return windows, mixture, mixed


def validation_data(folder: ShardFolder, config: DataConfig) -> dict[str, Windows]:
    """Cut the held-out windows of each corpus that has at least one block of held-out text.

    Raises:
        ConfigError: the shards can't be cut into such windows.
        DataError: no corpus has held-out windows.
    """
    windows = {}
    for name in folder.corpora("validation"):
        of_corpus = windows_of(folder, "validation", [(name, "first")], config)
        if of_corpus.n_blocks:
            windows[name] = of_corpus
    if not windows:
        raise DataError(
            f"no corpus in {folder.folder} has one block of {config.block_tokens} held-out tokens for validation: add "
            "text, raise data.validation_fraction, or lower data.block_tokens"
        )
    return windows


def windows_of(
    folder: ShardFolder, split: Split, streams: Sequence[tuple[str, Stratum]], config: DataConfig
) -> Windows:
    """Cut windows from streams of a folder, given by corpus and stratum. Raises like `document_blocks`."""
    aligned = config.windows == "documents"
    documents = document_blocks(folder, split, streams, config.block_tokens) if aligned else None
    tokens = [folder.stream(split, corpus, stratum) for corpus, stratum in streams]
    mark = None if config.query_mark is None else _token(folder, config.query_mark)
    return Windows(tokens, config.context_length, config.block_tokens, documents, mark)


def _token(folder: ShardFolder, text: str) -> int:
    """Return the single token of a text; raise ConfigError if the text is not one token."""
    (tokens,) = folder.tokenizer.encode([text])
    if len(tokens) != 1:
        raise ConfigError(
            f"data.query_mark={text!r} is {len(tokens)} tokens in the text's tokenizer: give a text of one token"
        )
    return int(tokens[0])


def document_blocks(
    folder: ShardFolder, split: Split, streams: Sequence[tuple[str, Stratum]], block_tokens: int
) -> DocumentBlocks:
    """Find the blocks that start at documents, for streams of a folder given by corpus and stratum.

    Raises:
        ConfigError: the shards are remote.
        DataError: a file of document starts is damaged or missing.
    """
    if folder.cache is not None:
        raise ConfigError(
            f"data.windows=documents needs to know where each document of {folder.folder} starts: copy the shards to "
            "this machine, or use data.windows=stream"
        )
    joined = []
    for corpus, stratum in streams:
        shards = folder.shards(split, corpus, stratum)
        *starts, end = accumulate((shard.tokens for shard in shards), initial=0)
        pieces = [bounds(folder, shard)[:-1] + start for shard, start in zip(shards, starts, strict=True)]
        joined.append(np.concatenate([*pieces, np.asarray([end], dtype=np.int64)]))
    return DocumentBlocks(
        joined, block_tokens, end_of_text_first=folder.manifest.options.get("end of text") in ("both", "before")
    )
