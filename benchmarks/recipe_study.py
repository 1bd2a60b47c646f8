"""What the study of `recipe.py` runs: the reference as it is tuned, the recipe, and the recipe without its parts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.results.run import Run

REFERENCE, RECIPE = "experiment=fast_small_reference", "experiment=fast_small"
TUNING_SEED = 100


@dataclass(frozen=True)
class Try:
    """What the reference is tuned over.

    Attributes:
        batch_tokens: of a step.
        rate: the peak learning rate.
    """

    batch_tokens: int
    rate: float

    def __str__(self) -> str:
        """For names of folders."""
        return f"tokens-{self.batch_tokens}_rate-{self.rate}"

    def words(self, tokens: int, context_length: int) -> tuple[str, ...]:
        """Overrides that spend so many tokens in such steps, each in one pass, a tenth of them to warm up."""
        steps = tokens // self.batch_tokens
        return (
            f"batch_tokens={self.batch_tokens}",
            f"hardware.micro_batch_size={self.batch_tokens // context_length}",
            f"total_steps={steps}",
            f"schedule.warmup_steps={steps // 10}",
            f"optimizer.learning_rate={self.rate}",
        )


@dataclass(frozen=True)
class Scale:
    """What is compared with what.

    Attributes:
        title: what it is, for people.
        rates: that the reference tries, by the tokens of a step.
        times: the tokens of both, of those that the headline is about.
        both: overrides of reference and recipe.
    """

    title: str
    rates: Mapping[int, tuple[float, ...]]
    times: int = 1
    both: tuple[str, ...] = ()

    @property
    def tries(self) -> list[Try]:
        """All of them."""
        return [Try(tokens, rate) for tokens, rates in self.rates.items() for rate in rates]


SCALES = {
    "small": Scale(
        "two layers of 256",
        rates={512: (1e-3, 1.4e-3, 2e-3), 1024: (1.4e-3, 2e-3, 2.8e-3), 2048: (2e-3, 2.8e-3, 4e-3)},
    ),
    "smaller": Scale(
        "two layers of 128",
        rates={512: (1.4e-3, 2e-3, 2.8e-3, 4e-3), 1024: (2e-3, 2.8e-3, 4e-3), 2048: (2.8e-3, 4e-3, 5.6e-3)},
        both=("model.d_model=128", "model.n_heads=2"),
    ),
    "longer": Scale(
        "two layers of 256, four times the tokens",
        rates={1024: (1e-3, 1.4e-3, 2e-3, 2.8e-3)},
        times=4,
    ),
}
"""The recipe was chosen at the first alone, and the reference is tuned at each; at the longest in its rate alone."""

FIRST, *TRANSFER = SCALES
STAGES = ("tuning", "headline", "ingredients", *TRANSFER)

WITHOUT = {
    "Muon, with AdamW as the reference has it": (
        "optimizer=adamw",
        "optimizer.learning_rate=RATE",
        "optimizer.beta1=0.9",
        "optimizer.beta2=0.95",
        "optimizer.gradient_clipping=1.0",
    ),
    "published proportions": ("optimizer.adjust_lr=match_rms_adamw",),
    "heads apart, in four iterations": ("optimizer.heads_apart=false", "optimizer.iterations=5"),
    "memory": ("optimizer.momentum=0.95", "optimizer.beta1=0.9", "optimizer.beta2=0.95"),
    "no clipping": ("optimizer.gradient_clipping=1.0",),
    "short windows first": ("curriculum.first_length=null", "curriculum.steps=null"),
}
"""What makes of the recipe one that lacks an ingredient; `RATE` is the reference's best with as many tokens a step."""

BUDGETS = (0.35, 0.6)
"""Shares of the reference's tokens at which the recipe runs too, each with a schedule that ends there."""

STEPS = ("total_steps", "schedule.warmup_steps", "curriculum.steps")
"""Of the recipe, all in proportion to its tokens."""

NO_READING = "reading.multiples=[]"


@dataclass(frozen=True)
class Cell:
    """A run of the study: where it is, and what it is of."""

    path: Path
    overrides: tuple[str, ...]
    seed: int

    def run(self) -> Run | None:
        """What it recorded, if it is finished.

        Raises:
            ConfigError: it is finished, but what it recorded is not whole.
        """
        run = Run.read(self.path) if self.path.is_dir() else None
        if run is None or run.state != "finished":
            return None
        whole = run.step == run.config.get("total_steps") and run.tokens and run.hours
        if not whole or math.isnan(run.validation_loss):
            raise ConfigError(
                f"{self.path} is finished, but its config.yaml and metrics.csv don't tell its last step's validation "
                "loss and time: remove the folder, and it runs again"
            )
        return run


@cache
def composed(*words: str) -> DictConfig:
    """What `train.py` would run."""
    return compose("train", list(words))


@dataclass(frozen=True)
class Study:
    """What there is to run.

    Attributes:
        given: overrides for all runs.
        tokens: of the headline's reference, unless those of its experiment; the recipe has its share of them.
    """

    output: Path
    given: tuple[str, ...]
    seeds: int
    tokens: int | None = None

    def _cell(self, name: str, *overrides: str, seed: int) -> Cell:
        return Cell(self.output / f"{name}_seed-{seed}", (*self.given, *overrides, f"seed={seed}"), seed)

    def _tokens(self, scale: str) -> int:
        """The reference's."""
        base = composed(REFERENCE, *self.given)
        return SCALES[scale].times * (self.tokens or base.total_steps * base.batch_tokens)

    def _reference(self, scale: str, one: Try) -> tuple[str, ...]:
        words = one.words(self._tokens(scale), composed(REFERENCE, *self.given).data.context_length)
        return (REFERENCE, *words, *SCALES[scale].both)

    def _recipe(self, scale: str, share: float | None = None) -> tuple[str, ...]:
        """As it is, but for its steps.

        Args:
            share: of the reference's tokens to spend, unless its own.
        """
        base, recipe = composed(REFERENCE, *self.given), composed(RECIPE, *self.given)
        own = recipe.total_steps * recipe.batch_tokens / (base.total_steps * base.batch_tokens)
        steps = (share or own) * self._tokens(scale) / recipe.batch_tokens
        times = steps / recipe.total_steps
        words = (f"{key}={max(1, round(times * OmegaConf.select(recipe, key)))}" for key in STEPS)
        return (RECIPE, *words, *SCALES[scale].both)

    @property
    def counted(self) -> range:
        """Seeds of all comparisons; 0 and 1 are those that the recipe was chosen on."""
        return range(2, self.seeds + 2)

    def tuning(self, scale: str) -> dict[Try, Cell]:
        """The reference at each rate and number of tokens a step."""
        return {
            each: self._cell(f"tuning/{scale}_{each}", *self._reference(scale, each), NO_READING, seed=TUNING_SEED)
            for each in SCALES[scale].tries
        }

    def tried(self, scale: str) -> dict[Try, float]:
        """The reference's validation loss in each that has run."""
        return {each: run.validation_loss for each, cell in self.tuning(scale).items() if (run := cell.run())}

    def is_tuned(self, scale: str) -> bool:
        """Whether all have run."""
        return len(self.tried(scale)) == len(SCALES[scale].tries)

    def best(self, scale: str, batch_tokens: int | None = None) -> Try:
        """The reference's.

        Args:
            batch_tokens: only among those with so many a step.

        Raises:
            ConfigError: it was not tuned yet.
        """
        found = self.tried(scale)
        if not self.is_tuned(scale):
            raise ConfigError(f"the reference is not tuned in {self.output} yet: run --only tuning first")
        return min((each for each in found if batch_tokens in (None, each.batch_tokens)), key=lambda each: found[each])

    def arms(self, scale: str) -> dict[int, tuple[Cell, Cell]]:
        """Reference and recipe, by seed; at the first scale they are read at other lengths, too."""
        folder, read = ("headline", ()) if scale == FIRST else ("transfer", (NO_READING,))
        best = self.best(scale)
        reference, recipe = self._reference(scale, best), self._recipe(scale)
        return {
            seed: (
                self._cell(f"{folder}/{scale}_reference_{best}", *reference, *read, seed=seed),
                self._cell(f"{folder}/{scale}_recipe", *recipe, *read, seed=seed),
            )
            for seed in self.counted
        }

    def others(self) -> dict[str, list[Cell]]:
        """References that are tuned less than the headline's, and more, by seed."""
        best, same = self.best(FIRST), self.best(FIRST, composed(RECIPE, *self.given).batch_tokens)
        arms = {
            f"the reference at {same.batch_tokens:,} tokens a step": (
                f"same-step_{same}",
                self._reference(FIRST, same),
            ),
            "the reference with betas of 0.8 and 0.98": (
                f"retuned_{best}",
                (*self._reference(FIRST, best), "optimizer.beta1=0.8", "optimizer.beta2=0.98"),
            ),
        }
        return {
            name: [self._cell(f"headline/{FIRST}_{short}", *words, NO_READING, seed=seed) for seed in self.counted]
            for name, (short, words) in arms.items()
        }

    def ingredients(self) -> dict[str, list[Cell]]:
        """The recipe without each, by seed."""
        rate = str(self.best(FIRST, composed(RECIPE, *self.given).batch_tokens).rate)
        found = {}
        for name, without in WITHOUT.items():
            words = [word.replace("RATE", rate) for word in without]
            at = f"_rate-{rate}" if words != list(without) else ""
            folder = f"ingredients/without_{name.partition(',')[0].replace(' ', '-')}{at}"
            words = [*self._recipe(FIRST), *words, NO_READING]
            found[name] = [self._cell(folder, *words, seed=seed) for seed in self.counted]
        return found

    def budgets(self) -> dict[float, list[Cell]]:
        """The recipe at other shares of the reference's tokens, by seed."""
        return {
            share: [
                self._cell(f"budgets/share-{share}", *self._recipe(FIRST, share), NO_READING, seed=seed)
                for seed in self.counted
            ]
            for share in BUDGETS
        }

    def stage(self, name: str) -> Iterator[list[Cell]]:
        """Cells in the order in which they run; what comes next may depend on what those before have shown."""
        if name == "tuning":
            yield list(self.tuning(FIRST).values())
        elif name == "headline":
            arms = zip(*self.arms(FIRST).values(), strict=True)
            yield in_turn(*arms, *self.others().values(), *self.budgets().values())
        elif name == "ingredients":
            yield in_turn(*self.ingredients().values())
        else:
            yield list(self.tuning(name).values())
            yield in_turn(*zip(*self.arms(name).values(), strict=True))


def in_turn(*designs: Sequence[Cell]) -> list[Cell]:
    """One of each, then the next of each."""
    return [cell for of_one_seed in zip(*designs, strict=True) for cell in of_one_seed]
