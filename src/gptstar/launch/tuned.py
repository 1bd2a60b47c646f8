"""A tuned sweep: tuning runs choose a value for each arm, then runs with several seeds train at this value."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

from hydra.core.override_parser.types import Override

from gptstar.errors import ConfigError
from gptstar.launch.names import check_values_differ, values_of
from gptstar.results.run import TUNING as TAG
from gptstar.results.run import Run

SEED = "seed"
SWEEPER = "hydra/sweeper=tuned"
TUNING = {
    "tags": f"[{TAG}]",
    "report": "false",
    "reading.multiples": "[]",
    "reading.context_lengths": "null",
    "final_studies": "[]",
}
"""Overrides of the tuning runs: they are validated, but not evaluated in any other way."""

DIVERGED = re.compile(r"loss is -?(nan|inf)|norm -?(nan|inf)")
"""A pattern for the reason of a run that failed because its loss was not finite."""

Arm = tuple[str, ...]
"""The overrides that distinguish an arm from the others, such as `("model.positions=alibi",)`."""


@dataclass(frozen=True)
class Design:
    """The runs of a tuned sweep.

    Attributes:
        fixed: overrides of all runs.
        arms: every combination of the factors' values.
        tune: the key that is tuned.
        values: its values that are tried.
        tuning_seed: the seed of the tuning runs.
        seeds: by arm, the seeds of the other runs, in the order in which they are trained.
    """

    fixed: tuple[str, ...]
    arms: tuple[Arm, ...]
    tune: str
    values: tuple[str, ...]
    tuning_seed: int
    seeds: Mapping[Arm, tuple[str, ...]]

    @classmethod
    def of(
        cls, overrides: Sequence[Override], tune: str, tuning_seed: int, more_seeds: Mapping[str, Any] | None = None
    ) -> Self:
        """Derive the design from the overrides of a sweep.

        Args:
            overrides: the sweep's overrides.
            tune: the key to tune.
            tuning_seed: the seed of the tuning runs.
            more_seeds: further seeds under the key `seed`, for the arms whose values its other keys list.

        Raises:
            ConfigError: there is nothing to choose from, a value is given twice, fewer than two seeds count, or the
                tuning seed is one of them.
        """
        given = {each.get_key_element(): each for each in overrides}
        check_values_differ({key: each for key, each in given.items() if each.is_sweep_override()})
        swept = {key: values_of(each) for key, each in given.items() if each.is_sweep_override()}
        if endless := [key for key, values in swept.items() if not values]:
            raise ConfigError(f"{SWEEPER}: {endless[0]} names no values: give them one by one, such as A,B")
        values, seeds = (swept.pop(key, []) for key in (tune, SEED))
        if len(values) < 2:
            raise ConfigError(f"{SWEEPER} chooses among values of {tune}: give several, such as {tune}=1e-3,2e-3,4e-3")
        if len(seeds) < 2:
            raise ConfigError(f"{SWEEPER} trains several seeds at the chosen value: give them, such as seed=0,1,2")
        constant = {
            key: each for key, each in given.items() if not each.is_sweep_override() and key not in (tune, SEED)
        }
        fixed = [f"{key}={each.get_value_element_as_str()}" for key, each in constant.items()]
        arms = [tuple(arm) for arm in product(*([f"{key}={value}" for value in swept[key]] for key in swept))]
        more = _MoreSeeds.of(more_seeds or {}, swept)
        of_arms = {arm: (*seeds, *(seed for seed in more.of_arm(arm) if seed not in seeds)) for arm in arms}
        if any(str(tuning_seed) in each for each in of_arms.values()):
            raise ConfigError(
                f"hydra.sweeper.tuning_seed={tuning_seed} is among the seeds that count, and a seed that chose the "
                f"{tune} must count for nothing else: give another"
            )
        return cls(tuple(fixed), tuple(arms), tune, tuple(values), tuning_seed, of_arms)

    @property
    def n_jobs(self) -> int:
        """The number of all runs."""
        return len(self.arms) * len(self.values) + sum(map(len, self.seeds.values()))

    def tuning_jobs(self) -> list[list[str]]:
        """List the overrides of the tuning runs, arm by arm and value by value."""
        fixed = [word for word in self.fixed if word.partition("=")[0] not in TUNING]
        words = [f"{key}={value}" for key, value in TUNING.items()]
        return [
            [*fixed, *arm, f"{self.tune}={value}", f"{SEED}={self.tuning_seed}", *words]
            for arm in self.arms
            for value in self.values
        ]

    def seed_jobs(self, chosen: Mapping[Arm, str]) -> list[list[str]]:
        """List the overrides of the runs at the chosen values, seed by seed, so that complete ones come first."""
        most = max(map(len, self.seeds.values()))
        return [
            [*self.fixed, *arm, f"{self.tune}={value}", f"{SEED}={self.seeds[arm][number]}"]
            for number in range(most)
            for arm, value in chosen.items()
            if number < len(self.seeds[arm])
        ]

    def summary(self) -> str:
        """Say in one line what will be run."""
        n_seeds = [len(each) for each in self.seeds.values()]
        by_number = {n: n_seeds.count(n) for n in sorted(set(n_seeds))}
        trained = " and ".join(f"{n} seeds of {count} arms" for n, count in by_number.items())
        return (
            f"{len(self.arms) * len(self.values)} tuning runs ({len(self.arms)} arms, {len(self.values)} values of "
            f"{self.tune}, seed {self.tuning_seed}), then {sum(n_seeds)} runs at the chosen values: {trained}"
        )


@dataclass(frozen=True)
class _MoreSeeds:
    """Further seeds for the arms that have, for each key, one of the given values."""

    seeds: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, given: Mapping[str, Any], factors: Mapping[str, object]) -> Self:
        listed = {key: _listed(value) for key, value in given.items()}
        seeds = listed.pop(SEED, ())
        if given and not (seeds and listed):
            raise ConfigError(
                f"hydra.sweeper.more_seeds={dict(given)}: name the arms and their further seeds, such as "
                "{model.positions: 'alibi,rotary', seed: '3,4'}"
            )
        if twice := [seed for seed in seeds if seeds.count(seed) > 1]:
            raise ConfigError(f"hydra.sweeper.more_seeds: seed {twice[0]} is given twice: give each seed once")
        if unknown := [key for key in listed if key not in factors]:
            raise ConfigError(f"hydra.sweeper.more_seeds: {unknown[0]} is not swept: name keys with several values")
        return cls(seeds, listed)

    def of_arm(self, arm: Arm) -> tuple[str, ...]:
        words = dict(word.split("=", 1) for word in arm)
        return self.seeds if all(words[key] in values for key, values in self.values.items()) else ()


def _listed(value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
    return tuple(str(word).strip() for word in words)


def tuning_loss(run: Run, ignored: Sequence[str] = ()) -> float:
    """Return the loss that decides the choice, in nats per token; infinite if the run diverged, NaN if unfinished.

    It is the last validation loss; with `ignored` corpora, the unweighted mean over the others.
    """
    if run.state == "failed" and DIVERGED.search(run.reason):
        return math.inf
    if run.state != "finished":
        return math.nan
    row = next((row for row in reversed(run.rows) if "validation/loss" in row), {})
    by_corpus = dict(_by_corpus(row))
    counted = [loss for corpus, loss in by_corpus.items() if corpus not in ignored]
    return sum(counted) / len(counted) if ignored and counted else run.validation_loss


def _by_corpus(row: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if found := re.fullmatch(r"validation/([^/]+)/loss", key):
            yield found[1], value


def choose(design: Design, arm: Arm, losses: Mapping[str, float]) -> tuple[str | None, str]:
    """Choose the value with the lowest loss.

    Args:
        losses: the loss of each value: infinite if the run diverged, NaN if it has not finished.

    Returns:
        The value, or None if a run is missing or all diverged; and a line that describes the choice.
    """
    name = ", ".join(arm) or "all"
    if missing := [value for value, loss in losses.items() if math.isnan(loss)]:
        return None, f"{name}: no value is chosen, as {design.tune}={missing[0]} was refused or has not finished"
    best = min(losses, key=lambda value: (losses[value], design.values.index(value)))
    if math.isinf(losses[best]):
        return None, f"{name}: no value is chosen, as all diverged: add lower ones to {design.tune}"
    tried = ", ".join(f"{value}: {loss:.4f}" for value, loss in losses.items())
    edge = f"; {where} value tried: add one beyond it" if (where := _edge(best, design.values)) else ""
    return best, f"{name}: {design.tune}={best} has the lowest validation loss ({tried}){edge}"


def _edge(value: str, values: Sequence[str]) -> str:
    """Say whether a value is the lowest or the highest; empty if it is neither, or if values are not numbers."""
    try:
        numbers = {each: float(each) for each in values}
    except ValueError:
        return ""
    if numbers[value] == min(numbers.values()):
        return "it is the lowest"
    return "it is the highest" if numbers[value] == max(numbers.values()) else ""
