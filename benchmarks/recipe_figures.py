"""What the runs of `recipe.py` say: tables with intervals over seeds, as Markdown, and a picture."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from gptstar.evaluation.statistics.effects import Effect, blocked_effect
from gptstar.results.effects import tokens_to
from gptstar.results.frames import lengths
from gptstar.results.run import Run
from recipe_study import FIRST, SCALES, TRANSFER, Cell, Study, Try

Pair = tuple[Run, Run]
"""Reference and recipe, of one seed."""

COLOURS = ("#0072B2", "#6e6e6e", "#D55E00", "#009E73")
HEADS = ("", "tokens", "validation loss", "minutes of training")


def show(study: Study) -> None:
    """Print the tables of what has run, and write them with the picture into the study's folder.

    Raises:
        ConfigError: no reference is tuned, at any scale.
    """
    tuned = [scale for scale in SCALES if study.is_tuned(scale)]
    study.best(tuned[0] if tuned else FIRST)
    parts = [_tuning(study)]
    pairs = finished_pairs(study.arms(FIRST)) if FIRST in tuned else {}
    if pairs:
        budgets, against = _by_tokens(study, pairs), {"the reference": pairs, **_others(study, pairs)}
        parts += [_headline(against), _budgets(against, budgets), _ingredients(study, pairs), _lengths(study, pairs)]
        _draw(study, against, budgets)
    parts += [_transfer(study, scale) for scale in TRANSFER if scale in tuned]
    text = "\n\n".join(part for part in parts if part)
    (study.output / "recipe.md").write_text(f"{text}\n", encoding="utf-8")
    Console().print(Markdown(text))
    print(f"in {study.output}: recipe.md{', recipe.png' if pairs else ''}")


def finished_pairs(cells: Mapping[int, tuple[Cell, Cell]]) -> dict[int, Pair]:
    """Of the seeds of which both have ended."""
    both = {seed: (one.run(), two.run()) for seed, (one, two) in cells.items()}
    return {seed: (one, two) for seed, (one, two) in both.items() if one is not None and two is not None}


def over_seeds(values: Mapping[int, float]) -> Effect:
    """A mean with its 95 % interval, Student's t over seeds."""
    return blocked_effect({seed: {0: value} for seed, value in values.items()})


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; numbers to the right."""
    lines = [heads, ("---", *["---:"] * (len(heads) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(values: Sequence[float], digits: int = 3) -> str:
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def difference(effect: Effect, digits: int = 3) -> str:
    """Nats, with the interval where there is one."""
    interval = "" if math.isnan(effect.low) else f" ({effect.low:+.{digits}f} to {effect.high:+.{digits}f})"
    return f"{effect.value:+.{digits}f}{interval}"


def ratio(effect: Effect) -> str:
    """Of an effect on a logarithm."""
    interval = "" if math.isnan(effect.low) else f" ({math.exp(effect.low):.2f} to {math.exp(effect.high):.2f})"
    return f"× {math.exp(effect.value):.2f}{interval}"


def _compared(pairs: Mapping[int, Pair]) -> list[list[str]]:
    """A line for each arm, and one of the recipe against the reference, paired by seed."""
    lines = []
    for name, runs in zip(("reference", "recipe"), zip(*pairs.values(), strict=True), strict=True):
        losses, minutes = [run.validation_loss for run in runs], [60 * run.hours for run in runs]
        lines.append([name, f"{runs[0].tokens:,}", _spread(losses), _spread(minutes, 2)])
    loss = over_seeds({seed: two.validation_loss - one.validation_loss for seed, (one, two) in pairs.items()})
    time = over_seeds({seed: math.log(two.hours / one.hours) for seed, (one, two) in pairs.items()})
    one, two = next(iter(pairs.values()))
    against = [
        f"recipe against it, {len(pairs)} seeds",
        f"× {two.tokens / one.tokens:.2f}",
        difference(loss),
        ratio(time),
    ]
    return [*lines, against]


def _tuning(study: Study) -> str:
    rows, edges = [], []
    rates = sorted({each.rate for of in SCALES.values() for each in of.tries})
    for scale, of in SCALES.items():
        found = study.tried(scale)
        for tokens in of.rates if found else ():
            row = [f"{found[one]:.3f}" if (one := Try(tokens, rate)) in found else "" for rate in rates]
            rows.append([of.title, f"{tokens:,}", *row])
        edges += _edges(study, scale)
    heads = ("the reference's loss", "tokens a step", *(f"{rate:g}" for rate in rates))
    title = "**Tuning the reference**, one seed that is used for nothing else, the whole budget; columns are peak rates"
    return "\n\n".join([title, table(heads, rows), *edges])


def _edges(study: Study, scale: str) -> list[str]:
    """What was best at an end of what was tried, so that something else may be better."""
    if not study.is_tuned(scale):
        return []
    of, best = SCALES[scale], study.best(scale)
    found = []
    if best.rate in (min(of.rates[best.batch_tokens]), max(of.rates[best.batch_tokens])):
        found.append(f"{of.title}: the best rate is at the end of those tried, so another may be better.")
    if len(of.rates) > 1 and best.batch_tokens in (min(of.rates), max(of.rates)):
        found.append(f"{of.title}: the best tokens a step are at the end of those tried, so others may be better.")
    return found


def _others(study: Study, pairs: Mapping[int, Pair]) -> dict[str, dict[int, Pair]]:
    """References that are tuned otherwise, each with the recipe."""
    found = {
        name: {cell.seed: (run, pairs[cell.seed][1]) for cell in cells if cell.seed in pairs and (run := cell.run())}
        for name, cells in study.others().items()
    }
    return {name: of for name, of in found.items() if of}


def _headline(against: Mapping[str, Mapping[int, Pair]]) -> str:
    rows = [_compared(against["the reference"])[1]]
    for name, pairs in against.items():
        one, _, between = _compared(pairs)
        rows += [[name, *one[1:]], between]
    return "**The recipe against the reference**, and against others\n\n" + table(HEADS, rows)


def _by_tokens(study: Study, pairs: Mapping[int, Pair]) -> dict[int, dict[int, Run]]:
    """Runs of the recipe by tokens and seed."""
    found: dict[int, dict[int, Run]] = {}
    others = [(cell.seed, cell.run()) for cells in study.budgets().values() for cell in cells]
    for seed, run in [*((seed, two) for seed, (_, two) in pairs.items()), *others]:
        if run is not None and seed in pairs:
            found.setdefault(run.tokens, {})[seed] = run
    return dict(sorted(found.items()))


def _budgets(against: Mapping[str, Mapping[int, Pair]], budgets: Mapping[int, Mapping[int, Run]]) -> str:
    """The recipe at several budgets, and where between them it reaches the references of each seed."""
    if len(budgets) < 2:
        return ""
    whole = next(iter(against["the reference"].values()))[0].tokens
    rows = [
        [
            f"{tokens:,}",
            f"× {tokens / whole:.2f}",
            _spread([run.validation_loss for run in runs.values()]),
            str(len(runs)),
        ]
        for tokens, runs in budgets.items()
    ]
    lines = [
        f"To the final loss of {name}, by a line over the logarithm between budgets: "
        f"tokens {reached(of, budgets, lambda run: run.tokens)}; time {reached(of, budgets, lambda run: run.hours)}."
        for name, of in against.items()
    ]
    title = "**The recipe at other budgets**, each with a schedule that ends there"
    return "\n\n".join([title, table(("tokens", "of the reference's", "validation loss", "seeds"), rows), *lines])


def reached(
    pairs: Mapping[int, Pair], budgets: Mapping[int, Mapping[int, Run]], measure: Callable[[Run], float]
) -> str:
    """The share of the reference's measure at which the recipe has its final loss, of seeds that have all budgets.

    Args:
        measure: tokens or time of a run.
    """
    shares, beyond, before = {}, [], []
    for seed, (reference, _) in pairs.items():
        runs = [by_seed[seed] for by_seed in budgets.values() if seed in by_seed]
        if len(runs) < len(budgets):
            continue
        curve = [(measure(run), run.validation_loss) for run in runs]
        share = tokens_to(curve, reference.validation_loss) / measure(reference)
        if math.isnan(share):
            beyond.append(seed)
        elif curve[0][1] <= reference.validation_loss:
            before.append(seed)
        else:
            shares[seed] = share
    if beyond or before or not shares:
        return f"{len(shares)} seeds between budgets, {len(before)} before the least, {len(beyond)} not at the most"
    effect = over_seeds({seed: math.log(share) for seed, share in shares.items()})
    return f"{ratio(effect)}, {len(shares)} seeds"


def _ingredients(study: Study, pairs: Mapping[int, Pair]) -> str:
    rows = []
    for name, cells in study.ingredients().items():
        runs = {cell.seed: run for cell in cells if cell.seed in pairs and (run := cell.run())}
        if runs:
            worse = over_seeds(
                {seed: run.validation_loss - pairs[seed][1].validation_loss for seed, run in runs.items()}
            )
            rows.append(
                [
                    name,
                    difference(worse),
                    "" if math.isnan(worse.p) else f"{worse.p:.2g}",
                    str(len(runs)),
                    worse.verdict,
                ]
            )
    if not rows:
        return ""
    heads = ("without", "loss, less the whole recipe's", "p", "seeds", "")
    return "**What each ingredient is worth**\n\n" + table(heads, rows)


def _transfer(study: Study, scale: str) -> str:
    pairs = finished_pairs(study.arms(scale))
    if not pairs:
        return ""
    about = f"**Elsewhere, {SCALES[scale].title}**: the recipe as it is, the reference tuned anew"
    return f"{about}\n\n{table(HEADS, _compared(pairs))}"


def _lengths(study: Study, pairs: Mapping[int, Pair]) -> str:
    """Loss beyond the training context, and how it changes with the context."""
    frame = lengths(study.output / "headline")
    loss = {(line["run"], line["multiple"]): line["loss"] for line in frame.to_dict("records")}
    rows = []
    for multiple in sorted({multiple for _, multiple in loss}):
        read = {
            seed: [(loss[run.name, multiple], loss[run.name, 1.0]) for run in pair]
            for seed, pair in pairs.items()
            if all((run.name, multiple) in loss for run in pair)
        }
        if read:
            between = over_seeds({seed: two - one for seed, ((one, _), (two, _)) in read.items()})
            changes = [over_seeds({seed: arms[arm][0] - arms[arm][1] for seed, arms in read.items()}) for arm in (0, 1)]
            first = _spread([arms[0][0] for arms in read.values()])
            rows.append([f"{multiple:g} ×", first, difference(between), *(difference(each, 4) for each in changes)])
    if not rows:
        return ""
    heads = ("context", "reference", "recipe - reference", "change since 1 ×: reference", "recipe")
    return "**Beyond the training context**, the same targets at each length\n\n" + table(heads, rows)


def _draw(study: Study, against: Mapping[str, Mapping[int, Pair]], budgets: Mapping[int, Mapping[int, Run]]) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    references = {name: {seed: one for seed, (one, _) in pairs.items()} for name, pairs in against.items()}
    curves = [(name, {next(iter(of.values())).tokens: of}) for name, of in references.items()]
    for (name, found), colour, marker in zip([("recipe", budgets), *curves], COLOURS, "os^v", strict=False):
        losses = [mean(run.validation_loss for run in runs.values()) for runs in found.values()]
        axes.plot(list(found), losses, color=colour, marker=marker, label=name)
        for at, runs in found.items():
            axes.plot([at] * len(runs), [run.validation_loss for run in runs.values()], ".", color=colour, alpha=0.5)
        if len(found) == 1:
            axes.axhline(losses[0], color=colour, linestyle=":")
    axes.set(xlabel="training tokens", ylabel="validation loss (nats a token)", xlim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False)
    figure.savefig(study.output / "recipe.png", dpi=130)
