"""Studies of recall and of attention heads at the end of a run, on its own checkpoint, at the lengths of `reading`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.read import find
from gptstar.data.storage.shards import ShardFolder
from gptstar.errors import ConfigError, DataError, Refusal
from gptstar.evaluation.heads.config import HeadsConfig
from gptstar.evaluation.heads.study import Windows
from gptstar.evaluation.heads.study import study as study_heads
from gptstar.evaluation.length.text import text_of_shards
from gptstar.evaluation.recall.config import RecallConfig, least_length
from gptstar.evaluation.recall.questions import lexicon_for
from gptstar.evaluation.recall.study import study as study_recall
from gptstar.training.record import Record

RECALL_ITEMS, RECALL_DEPTHS = 40, (0.0, 0.5, 1.0)
"""Texts at each length and depth, and the depths: fewer than in `evaluation=recall`, as every run of a sweep pays."""


def recall_config(record: Record, trained_at: int) -> RecallConfig:
    """Make the settings of a study of recall: at those lengths of `reading` that are multiples of the context."""
    lengths = record.reading.lengths(trained_at)
    multiples = tuple(length // trained_at for length in lengths if length % trained_at == 0)
    return RecallConfig(
        multiples=multiples or (1,),
        items=RECALL_ITEMS,
        depths=RECALL_DEPTHS,
        passkey=False,
        seed=record.reading.seed,
    )


def heads_config(record: Record, trained_at: int) -> HeadsConfig:
    """Make the settings of a study of heads: of the text of `reading`, at its lengths."""
    reading = record.reading
    return HeadsConfig(
        context_lengths=reading.lengths(trained_at),
        text=reading.text,
        column=reading.column,
        documents=reading.documents,
        last_bytes=reading.last_bytes,
        seed=reading.seed,
    )


def check_final_studies(record: Record, trained_at: int, shards: ShardFolder) -> None:
    """Check before training that the text and its tokenizer suit the studies.

    Raises:
        ConfigError: too few of recall's words are one token each, or windows are too short for its pairs.
        DataError: no held-out text is as long as the longest length.
    """
    if "recall" in record.final_studies:
        lexicon, n_pairs = lexicon_for(shards.tokenizer), recall_config(record, trained_at).pairs
        n_words = min(len(lexicon.keys), len(lexicon.values))
        if n_words < n_pairs or not lexicon.filler:
            raise ConfigError(
                f"final_studies=[recall] asks for common words, and {n_words} of them are one token of the text's "
                f"tokenizer, where {n_pairs} are needed: leave recall out, or mix it into the text (docs/evaluation.md)"
            )
        if (least := least_length(n_pairs)) > trained_at:
            raise ConfigError(
                f"final_studies=[recall] has texts of {least} tokens and more, and data.context_length={trained_at}: "
                "leave recall out, or train on a longer context"
            )
    if "heads" in record.final_studies and record.reading.text is None:
        config = heads_config(record, trained_at)
        lengths, text = config.reading.lengths(trained_at), text_of_shards(shards, joined=config.documents != "apart")
        try:
            Windows(text, lengths, config.queries_of(lengths), config.max_queries)
        except DataError as error:
            raise DataError(f"final_studies=[heads] can't be done: {error}") from error


def run_final_studies(
    record: Record, trained_at: int, shards: ShardFolder, device: torch.device, console: Console
) -> None:
    """Read the run's checkpoint, and write `recall/results.json` and `heads/results.json` into its directory.

    A study that is refused says so in a line, and the run ends all the same.
    """
    named = read_with_identity(find(record.output))
    studies: dict[Literal["recall", "heads"], Callable[[Path], object]] = {
        "recall": lambda output: study_recall(
            [named], recall_config(record, trained_at), device=device, console=console, output=output
        ),
        "heads": lambda output: study_heads(
            named,
            heads_config(record, trained_at),
            shards=None if record.reading.text else str(shards.folder),
            device=device,
            console=console,
            output=output,
        ),
    }
    what = {"recall": "asking for values by their keys", "heads": "measuring attention heads"}
    say = partial(console.print, highlight=False, soft_wrap=True)
    for name in record.final_studies:
        say(f"after the last step: {what[name]} at {_listed(record, trained_at)} tokens")
        try:
            studies[name](record.output / name)
        except Refusal as error:
            say(f"final_studies: {name} is left out: {error}", style="yellow")


def _listed(record: Record, trained_at: int) -> str:
    return ", ".join(f"{length:,}" for length in record.reading.lengths(trained_at))
