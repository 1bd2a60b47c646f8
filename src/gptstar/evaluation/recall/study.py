"""A study of recall, from checkpoints to tables, a picture and `results.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gptstar.checkpoint.format import Checkpoint
from gptstar.data.text.recall import SYMBOLS, Lexicon
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.batch_size import batch_size_for
from gptstar.evaluation.length.source import Named, unique_names
from gptstar.evaluation.progress import study_progress
from gptstar.evaluation.recall.config import RecallConfig
from gptstar.evaluation.recall.curve import Asker, RecallCurve, answers_of, cells_of
from gptstar.evaluation.recall.questions import PairQuestions, PasskeyQuestions, check_words, lexicon_for
from gptstar.evaluation.recall.tables import TESTS, depth_table, load_table, recall_markdown, verdict
from gptstar.evaluation.results import FILE_NAME, write_study
from gptstar.plots.recall import RecallPanel, draw_recall
from gptstar.plots.style import save

CPU_BATCH_TOKENS = 2**13
PICTURE = "recall.png"


@dataclass(frozen=True, eq=False)
class Part:
    """A checkpoint, with the tokenizer and the words of its questions."""

    name: str
    identity: Mapping[str, Any]
    checkpoint: Checkpoint
    trained_at: int
    tokenizer: Tokenizer
    lexicon: Lexicon


def study(
    checkpoints: Sequence[Named], config: RecallConfig, *, device: torch.device, console: Console, output: Path
) -> list[RecallCurve]:
    """Ask at each length, depth and load, print tables, and write `recall.png`, `results.md` and `results.json`.

    Returns:
        A curve for each checkpoint and test.

    Raises:
        ConfigError, DataError: a checkpoint has no tokenizer or no training context, or its tokenizer lacks words.
    """
    parts = _parts(checkpoints, config)
    curves: list[RecallCurve] = []
    with study_progress(console, "asking", sum(_tokens_to_read(part, config) for part in parts)) as progress:
        for part in parts:
            progress.turn_to(part.name)
            model = part.checkpoint.build().to(device).eval()
            at_once = config.batch_tokens or batch_size_for(model, cpu_tokens=CPU_BATCH_TOKENS).tokens
            answer = answers_of(model, device, getattr(torch, config.dtype), at_once)
            capacity = part.checkpoint.model.positions.capacity
            curves += _curves(part, Asker(answer, config, part.trained_at, capacity, progress.advance))
    _write(curves, config, output)
    for curve in curves:
        console.print(depth_table(curve))
        if curve.loads:
            console.print(load_table(curve))
        console.print(verdict(curve), soft_wrap=True, highlight=False)
    console.print(f"in {output}: {PICTURE}, results.md, {FILE_NAME}", soft_wrap=True, highlight=False)
    return curves


def _parts(checkpoints: Sequence[Named], config: RecallConfig) -> list[Part]:
    parts = []
    for name, (identity, checkpoint) in zip(unique_names(checkpoints), checkpoints, strict=True):
        if checkpoint.tokenizer is None:
            raise ConfigError(f"{name} holds no tokenizer: give tokenizer=FILE, a `tokenizers` JSON")
        trained_at = checkpoint.trained_at or config.trained_at
        if trained_at is None:
            raise ConfigError(f"{name} does not know its training context: give evaluation.trained_at=N")
        tokenizer = Tokenizer(checkpoint.tokenizer)
        tokenizer.check_vocabulary(checkpoint.model.n_vocab, f"{name}: the tokenizer")
        lexicon = lexicon_for(tokenizer)
        check_words(lexicon, config.pairs, name)
        parts.append(Part(name, identity, checkpoint, trained_at, tokenizer, lexicon))
    return parts


def _tokens_to_read(part: Part, config: RecallConfig) -> int:
    """Count the tokens of all texts of a part, including those beyond the model's capacity."""
    lengths = sum(config.lengths(part.trained_at)) * len(config.depths)
    loads, at_loads = config.fitting_loads(part.trained_at, len(part.lexicon.keys))
    n_passkeys = 0 if part.lexicon == SYMBOLS or not config.passkey else len(part.lexicon.keys)
    return lengths * (config.items + n_passkeys) + len(loads) * at_loads * config.items


def _curves(part: Part, asker: Asker) -> list[RecallCurve]:
    words = "symbols" if part.lexicon == SYMBOLS else "english"
    known = part.name, dict(part.identity), part.trained_at
    lengths, depths, loads = asker.pairs(PairQuestions(part.tokenizer, part.lexicon, asker.config.seed))
    n_values = len(part.lexicon.values)
    curves = [RecallCurve(*known, "pairs", n_values, words, tuple(lengths), tuple(depths), tuple(loads))]
    passkeys = PasskeyQuestions(part.tokenizer, part.lexicon)
    if asker.config.passkey and words == "english" and passkeys.least_length <= part.trained_at:
        lengths, depths = asker.passkeys(passkeys)
        n_keys = len(part.lexicon.keys)
        curves.append(RecallCurve(*known, "passkey", n_keys, words, tuple(lengths), tuple(depths)))
    return curves


def _write(curves: Sequence[RecallCurve], config: RecallConfig, output: Path) -> None:
    """Write the picture, `results.md` and, last and atomically, `results.json`."""
    output.mkdir(parents=True, exist_ok=True)
    save(draw_recall([_panel(curve) for curve in curves]), output / PICTURE)
    head = [
        f"{config.items} texts at each length and depth; associative recall has {config.pairs} pairs in each. The "
        f"answer is the candidate with the highest log-likelihood. Products in {config.dtype}."
    ]
    (output / "results.md").write_text(recall_markdown(curves, head), encoding="utf-8")
    write_study(output, "recall", config, curves=[asdict(curve) for curve in curves])


def _panel(curve: RecallCurve) -> RecallPanel:
    lengths = [cell.context_length for cell in curve.lengths]
    depths = [cell.depth or 0.0 for cell in cells_of(curve, curve.trained_at)]
    rows = [[cell.accuracy.value if cell.accuracy else None for cell in cells_of(curve, length)] for length in lengths]
    name = curve.name if curve.test == "pairs" else f"{curve.name}, {TESTS[curve.test]}"
    return RecallPanel(name, curve.trained_at, lengths, depths, rows, curve.lengths[0].chance, curve.learned)
