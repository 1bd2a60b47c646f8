"""What the runs of `recipe.py` say: tables with intervals over seeds, as Markdown, and a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from gptstar.composing import compose
from gptstar.errors import ConfigError
from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.effects import tokens_to
from gptstar.results.frames import lengths
from gptstar.results.run import Run

if TYPE_CHECKING:
    from recipe import Cell, Study

Pair = tuple[Run, Run]


def steps_of(experiment: Sequence[str]) -> int:
    """Of an experiment as it stands."""
    return int(compose("train", list(experiment)).total_steps)


def show(study: Study) -> None:
    """Print the tables of what has run, and write them with the picture into the study's folder.

    Raises:
        ConfigError: nothing has run.
    """
    pairs = _pairs(study, study.arms("small", "headline"))
    if not pairs:
        raise ConfigError(f"{study.output} holds no seed of which both arms are finished: run --only tuning,headline")
    parts = [
        _headline(pairs),
        _budgets(study, pairs),
        _ingredients(study, pairs),
        _sizes(study),
        _lengths(study, pairs),
    ]
    text = "\n\n".join(part for part in parts if part)
    (study.output / "recipe.md").write_text(f"{text}\n", encoding="utf-8")
    Console().print(Markdown(text))
    print(f"in {study.output}: recipe.md, recipe.png")


def _pairs(study: Study, cells: Sequence[tuple[Cell, Cell]]) -> list[Pair]:
    both = [(_finished(study, one), _finished(study, two)) for one, two in cells]
    return [(one, two) for one, two in both if one is not None and two is not None]


def _finished(study: Study, cell: Cell) -> Run | None:
    path = study.output / cell.name
    run = Run.read(path) if path.is_dir() else None
    return run if run is not None and run.state == "finished" else None


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(*rows: Sequence[str]) -> str:
    first, *others = rows
    return "\n".join([_row(*first), _row("---", *["---:"] * (len(first) - 1)), *(_row(*row) for row in others)])


def _spread(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def _difference(effect: Effect) -> str:
    interval = "" if math.isnan(effect.low) else f" ({effect.low:+.3f} to {effect.high:+.3f})"
    return f"{effect.value:+.3f}{interval}"


def _ratio(effect: Effect) -> str:
    interval = "" if math.isnan(effect.low) else f" ({math.exp(effect.low):.2f} to {math.exp(effect.high):.2f})"
    return f"{math.exp(effect.value):.2f}{interval}"


def _over_seeds(values: Sequence[float]) -> Effect:
    return blocked_effect({seed: {0: value} for seed, value in enumerate(values)})


def _compared(pairs: Sequence[Pair]) -> list[list[str]]:
    """A line for reference and recipe, and one of the recipe against the reference, paired by seed."""
    lines = [
        [
            name,
            f"{runs[0].tokens:,}",
            _spread([run.validation_loss for run in runs]),
            _spread([60 * run.hours for run in runs], 2),
        ]
        for name, runs in zip(("reference", "recipe"), zip(*pairs, strict=True), strict=True)
    ]
    loss = _over_seeds([two.validation_loss - one.validation_loss for one, two in pairs])
    time = _over_seeds([math.log(two.hours / one.hours) for one, two in pairs])
    share = pairs[0][1].tokens / pairs[0][0].tokens
    return [*lines, [f"recipe, {len(pairs)} pairs", f"× {share:.2f}", _difference(loss), f"× {_ratio(time)}"]]


HEADS = ("", "tokens", "validation loss", "minutes of training")


def _headline(pairs: Sequence[Pair]) -> str:
    rate = pairs[0][0].config["optimizer"]["learning_rate"]
    said = f"The reference's learning rate, the best of those tried: {rate:g}."
    return f"**The recipe against the reference**, each seed's runs one after the other. {said}\n\n" + _table(
        HEADS, *_compared(pairs)
    )


def _budgets(study: Study, pairs: Sequence[Pair]) -> str:
    """The recipe at several budgets, and where between them it reaches each seed's reference."""
    points = {run.tokens: {run.config["seed"]: run} for _, run in pairs[:1]}
    for run in (run for cells in study.budgets().values() for cell in cells if (run := _finished(study, cell))):
        points.setdefault(run.tokens, {})[run.config["seed"]] = run
    points[pairs[0][1].tokens] = {two.config["seed"]: two for _, two in pairs}
    shares = []
    for reference, own in pairs:
        seed = own.config["seed"]
        curve = [(tokens, runs[seed].validation_loss) for tokens, runs in sorted(points.items()) if seed in runs]
        shares.append(tokens_to(curve, reference.validation_loss) / reference.tokens)
    rows = [
        [
            f"{tokens:,}",
            f"{tokens / pairs[0][0].tokens:.2f}",
            _spread([run.validation_loss for run in runs.values()]),
            str(len(runs)),
        ]
        for tokens, runs in sorted(points.items())
    ]
    _draw(study, pairs, points)
    reached = "not reached by some" if any(map(math.isnan, shares)) else f"× {_ratio(_over_seeds([*map(math.log, shares)]))}"
    return (
        "**The recipe at other budgets**, each with a schedule of its own\n\n"
        + _table(("tokens", "of the reference's", "validation loss", "seeds"), *rows)
        + f"\n\nTokens to the reference's final loss, by a line between budgets: {reached}."
    )


def _draw(study: Study, pairs: Sequence[Pair], points: dict[int, dict[int, Run]]) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    references = [one for one, _ in pairs]
    for colour, marker, name, found in (
        ("#6e6e6e", "s", "reference: AdamW, cosine", {references[0].tokens: references}),
        ("#0072B2", "o", "recipe", {tokens: list(runs.values()) for tokens, runs in sorted(points.items())}),
    ):
        tokens = list(found)
        losses = [mean(run.validation_loss for run in runs) for runs in found.values()]
        axes.plot(tokens, losses, color=colour, marker=marker, label=name)
        for at, runs in found.items():
            axes.plot([at] * len(runs), [run.validation_loss for run in runs], ".", color=colour, alpha=0.5)
    axes.axhline(mean(run.validation_loss for run in references), color="#6e6e6e", linestyle=":")
    axes.set(xlabel="training tokens", ylabel="validation loss (nats a token)", xlim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(study.output / "recipe.png", dpi=130)


def _ingredients(study: Study, pairs: Sequence[Pair]) -> str:
    recipes = {two.config["seed"]: two for _, two in pairs}
    rows = []
    for name, cells in study.ingredients().items():
        runs = [run for cell in cells if (run := _finished(study, cell)) and run.config["seed"] in recipes]
        if runs:
            losses = [run.validation_loss - recipes[run.config["seed"]].validation_loss for run in runs]
            effect = _over_seeds(losses)
            rows.append([name, _difference(effect), f"{effect.p:.2g}", str(len(runs)), effect.verdict])
    if not rows:
        return ""
    heads = ("without", "loss against the whole recipe's", "p", "seeds", "")
    return "**What each ingredient is worth**: the recipe without it\n\n" + _table(heads, *rows)


def _sizes(study: Study) -> str:
    rows = []
    for size in ("smaller",):
        try:
            pairs = _pairs(study, study.arms(size, "sizes"))
        except ConfigError:
            continue
        if pairs:
            rows += [[f"{size}: {name}", *others] for name, *others in _compared(pairs)]
    return "**Another size**, the recipe as it is, the reference tuned anew\n\n" + _table(HEADS, *rows) if rows else ""


def _lengths(study: Study, pairs: Sequence[Pair]) -> str:
    """Change of the loss beyond the training context, and whether the recipe's is worse."""
    frame = lengths(study.output / "headline")
    frame = frame[frame["rotary_scaling"] == "none"]
    if frame.empty:
        return ""
    loss = {(line["run"], line["multiple"]): line["loss"] for line in frame.to_dict("records")}
    multiples = sorted(frame["multiple"].unique())
    changes: dict[float, list[tuple[float, float]]] = {}
    for one, two in pairs:
        for multiple in multiples:
            both = [loss.get((run.name, multiple), math.nan) - loss.get((run.name, 1.0), math.nan) for run in (one, two)]
            if not any(map(math.isnan, both)):
                changes.setdefault(multiple, []).append((both[0], both[1]))
    rows = [
        [
            f"{multiple:g} ×",
            _difference(_over_seeds([one for one, _ in both])),
            _difference(_over_seeds([two for _, two in both])),
            _difference(_over_seeds([two - one for one, two in both])),
        ]
        for multiple, both in changes.items()
        if multiple > 1
    ]
    heads = ("context", "reference", "recipe", "recipe - reference")
    return "**Beyond the training context**: change of the loss on the same targets\n\n" + _table(heads, *rows)
