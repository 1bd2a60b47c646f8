"""Key tokens: the targets that a long context helps, according to a judge, which is a checkpoint of another run.

A target is key if the judge's log-probability of it at the longest length is more than 2 nats above that at the
training context, and above -2. The mean loss of all targets hides them, because most targets need no long context.

Source: Fang et al., "What is wrong with perplexity for long-context language modeling?", 2024 (2410.23771), whose alpha
and beta these are. There the judge is a strong model, and short contexts are 4,096 tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from gptstar.checkpoint.identity import read_with_identity
from gptstar.checkpoint.read import find
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.length.config import LengthConfig
from gptstar.evaluation.length.curve import Curve, Plan, Read
from gptstar.evaluation.length.reading import Reader
from gptstar.evaluation.length.source import Named, Part
from gptstar.evaluation.tables import UNDEFINED, figure_text, half_text, markdown_table

KEY_GAIN, KEY_LEAST = 2.0, -2.0
"""The paper's alpha and beta, in nats: the least gain in log-probability by a long context, and the least result."""

LEAST_KEY_TOKENS = 30
"""With fewer key tokens, their mean loss is not reliable, whatever its interval."""


@dataclass(frozen=True)
class KeyTokens:
    """The key tokens of one checkpoint's targets.

    Attributes:
        short, long: the two context lengths at which the judge's losses are compared.
        count: the number of key tokens among the targets.
    """

    name: str
    short: int
    long: int
    targets: int
    count: int

    @property
    def caveat(self) -> str:
        """A warning if there are too few key tokens for a reliable loss, else empty."""
        if not self.count:
            return f"{self.name}: the judge finds no key token among {self.targets:,} targets, so there is no key loss."
        if self.count < LEAST_KEY_TOKENS:
            few = f"{self.count} key token{'s' if self.count > 1 else ''} among {self.targets:,} targets"
            return f"{self.name}: only {few}, too few to tell models apart by: read more text, evaluation.max_tokens."
        return ""


class Judge:
    """A checkpoint that chooses key tokens; it reads each text once at each length.

    Attributes:
        found: the key tokens of each checkpoint.
    """

    def __init__(self, identity: Mapping[str, Any], reader: Reader) -> None:
        self.identity, self._reader = identity, reader
        self.found: list[KeyTokens] = []
        self._losses: dict[tuple[int, int], np.ndarray] = {}

    def key_tokens(self, part: Part) -> np.ndarray:
        """Choose the key tokens among a checkpoint's targets: `(target,)`, bool."""
        short, long = _lengths(part)
        is_key = are_key(self._read(part, short), self._read(part, long))
        self.found.append(KeyTokens(part.name, short, long, len(is_key), int(is_key.sum())))
        return is_key

    def _read(self, part: Part, length: int) -> np.ndarray:
        plan = part.fixed_plan
        key = id(plan), length
        if key not in self._losses:
            self._losses[key] = self._reader.read(plan.text, plan.windows(length), plan.n_targets, length)[0]
        return self._losses[key]

    @property
    def beyond_training(self) -> list[str]:
        """A warning if the judge reads more than it was trained with, so that it may miss what a long context helps."""
        trained_at, longest = self.identity.get("context_length"), max(each.long for each in self.found)
        if trained_at is None or longest <= trained_at:
            return []
        return [
            f"The judge was trained at {trained_at:,} tokens and reads {longest:,}: it finds only what it can use "
            "beyond its own training. Prefer a judge trained at the longest length, such as "
            "experiment=extrapolation_long makes."
        ]

    def described(self) -> dict[str, Any]:
        """Return the judge and the key tokens as `results.json` holds them."""
        of = [asdict(each) for each in self.found]
        return {"judge": dict(self.identity), "gain": KEY_GAIN, "least": KEY_LEAST, "checkpoints": of}


def tokens_of_judge(parts: Sequence[Part]) -> int:
    """Count the tokens that the judge of a study reads."""
    readings = {(id(part.plan), length): part.plan for part in parts for length in _lengths(part)}
    return sum(window.size for (_, length), plan in readings.items() for window in plan.windows(length))


def are_key(short: np.ndarray, long: np.ndarray) -> np.ndarray:
    """Return which targets are key, `(target,)`, from a judge's losses with a short and a long context, in nats."""
    return (short - long > KEY_GAIN) & (-long > KEY_LEAST)


def _lengths(part: Part) -> tuple[int, int]:
    """Return the judge's two lengths: the training context (at most the longest length), and the longest length."""
    assert part.trained_at is not None, "a judge is refused without a training context"
    longest = max(part.plan.lengths)
    return min(part.trained_at, longest), longest


def judge_of(config: LengthConfig, parts: Sequence[Part]) -> Named | None:
    """Read the checkpoint of a study's judge, with its identity; None if none is named.

    Raises:
        ConfigError: the judge belongs to an evaluated run, has another tokenizer, or can't read the longest length.
        CheckpointError: the judge can't be read.
    """
    if config.judge is None:
        return None
    key = f"evaluation.judge={config.judge}"
    identity, checkpoint = read_with_identity(find(Path(config.judge)))
    for part in parts:
        if identity["sha256"] == part.identity.get("sha256"):
            raise ConfigError(
                f"{key} is {part.name} itself, which would choose its own tokens: give another seed's run"
            )
        if _are_kin((identity, checkpoint), (part.identity, part.checkpoint)):
            raise ConfigError(
                f"{key} is of the same run as {part.name}, or shares its seed, model and text, or its first weights: "
                "give a run of another seed"
            )
    if checkpoint.tokenizer is None:
        raise ConfigError(
            f"{key} holds no tokenizer, so its tokens may not be those that are scored: give another judge"
        )
    fingerprint = Tokenizer(checkpoint.tokenizer).fingerprint
    others = [part.name for part in parts if part.tokenizer != fingerprint]
    if others:
        raise ConfigError(f"{key} has another tokenizer than {', '.join(others)}: give a judge of the same tokenizer")
    capacity, longest = checkpoint.model.positions.capacity, max(max(part.plan.lengths) for part in parts)
    if capacity is not None and longest > capacity:
        raise ConfigError(
            f"{key} has {capacity:,} positions, and the longest context is {longest:,} tokens: give another judge, or "
            "read shorter contexts"
        )
    return identity, checkpoint


def _are_kin(one: Named, other: Named) -> bool:
    """Whether two checkpoints come from one run, or from runs that share weights or seed, model and training text.

    A run that goes on for more steps, or a branch with another schedule, has other settings but the same seed, model
    and text. A run that began with other weights (`init_from`) holds their path and checksum.
    """
    begun = _begun_with(one), _begun_with(other)
    if begun[0] & begun[1] or begun[0] & _names_of(other) or begun[1] & _names_of(one):
        return True
    mine, theirs = one[1].training, other[1].training
    if mine is None or theirs is None or "seed" not in mine.settings:
        return False
    same_seed = mine.settings["seed"] == theirs.settings.get("seed")
    same_text = mine.data.get("fingerprint") == theirs.data.get("fingerprint")
    return same_seed and same_text and one[1].model.as_dict() == other[1].model.as_dict()


def _begun_with(named: Named) -> set[str]:
    """The checksum and the run directory of the weights that a run began with; empty if they were new."""
    training = named[1].training
    return _names_of((training.data.get("init_from", {}), named[1])) if training else set()


def _names_of(named: Named) -> set[str]:
    """The checksum of a checkpoint, and its run directory, in which all checkpoints are kin."""
    identity = named[0]
    folder = str(Path(identity["path"]).parent) if "path" in identity else None
    return {each for each in (identity.get("sha256"), folder) if each}


def with_key_losses(curve: Curve, plan: Plan, read: Mapping[int, Read], is_key: np.ndarray) -> Curve:
    """Add the loss of the key tokens to each length of a curve for which the model is defined."""
    if not is_key.any():
        return curve
    results = (
        replace(each, key_loss=plan.loss_on(read[each.context_length][0], is_key)) if each.loss else each
        for each in curve.lengths
    )
    return replace(curve, lengths=tuple(results))


def key_table(curves: Sequence[Curve]) -> Table:
    """Return a table of the loss of key tokens and of all targets, for the terminal."""
    table = Table(title="loss of all targets, and of key tokens, ± half of the 95 % interval")
    for column in ("", "context", "loss", "key loss"):
        table.add_column(column, justify="right" if column else "left")
    for curve in curves:
        for result in curve.lengths:
            cells = (half_text(result.loss), half_text(result.key_loss) if result.key_loss else "")
            table.add_row(Text(curve.name), f"{result.context_length:,}", *cells)
    return table


def notes(judge: Judge) -> list[str]:
    """Describe the number of key tokens, with a warning where there are too few."""
    counted = "; ".join(f"{each.name} {each.count:,} of {each.targets:,} targets" for each in judge.found)
    line = (
        f"Key tokens by {judge.identity['name']}, whose log-probability the longest context raises by more than "
        f"{KEY_GAIN:g} nats, to above {KEY_LEAST:g}: {counted}."
    )
    return [line, *judge.beyond_training, *(each.caveat for each in judge.found if each.caveat)]


def key_markdown(judge: Judge, curves: Sequence[Curve]) -> list[str]:
    """Return the lines of the section of `results.md` on key tokens."""
    rows = [
        (
            curve.name,
            f"{result.context_length:,}",
            figure_text(result.loss, 4) if result.loss else UNDEFINED,
            figure_text(result.key_loss, 4) if result.key_loss else "",
        )
        for curve in curves
        for result in curve.lengths
    ]
    head = ["## Key tokens", "", "\n\n".join(notes(judge)), ""]
    return [*head, *markdown_table(["curve", "context", "loss", "key loss"], rows, n_left=1)]
