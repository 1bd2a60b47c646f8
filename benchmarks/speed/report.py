"""What was measured as tables: in `RESULTS.md`, and in the terminal."""

import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from speed.comparison import Comparison
from speed.comparisons import comparisons
from speed.engine import Measured, Outcome
from speed.figures import Figure, figure, mfu, paired, powers, reached, share, speeds
from speed.scale import Scale
from speed.store import Results

LIMITS = {
    "gemm_bf16": ("GEMM peak, bfloat16", 1e9, "GFLOP/s"),
    "gemm_float32": ("GEMM peak, float32", 1e9, "GFLOP/s"),
    "read_bandwidth": ("memory is read at", 1e9, "GB/s"),
}
GPU_LIMITS = {
    "gemm_bf16": ("GEMM peak, bfloat16, 8192³", 1e12, "TFLOP/s"),
    "gemm_float32": ("GEMM peak, float32, 8192³", 1e12, "TFLOP/s"),
    "read_bandwidth": ("memory is copied at", 1e9, "GB/s"),
}
GPU_COLUMNS = ("MFU", "ms a step", "first step, s", "peak, GB")
DEVICES = {"cpu": "CPU", "cuda": "GPU"}


@dataclass(frozen=True)
class Table:
    """Rows under columns; all columns but the first `left` hold figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def markdown(self) -> str:
        """As GitHub shows it."""
        rules = ["---" if number < self.left else "---:" for number in range(len(self.columns))]
        return "\n".join(f"| {' | '.join(row)} |" for row in (self.columns, rules, *self.rows))

    def terminal(self, title: str) -> RichTable:
        """As `rich` shows it."""
        table = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(self.columns):
            left = number < self.left
            table.add_column(column, justify="left" if left else "right", no_wrap=left and self.left == 1)
        for row in self.rows:
            table.add_row(*row)
        return table


def console() -> Console:
    """The terminal, or a page wide enough for the tables where the output is none."""
    return Console(width=None if sys.stdout.isatty() else 160)


def claims_table(pairs: Iterable[tuple[Comparison, Outcome]]) -> Table:
    """Everything that is claimed, and whether it holds."""
    rows = []
    for comparison, outcome in pairs:
        for claim in comparison.claims:
            found = figure(claim, outcome, comparison)
            relation = "≤" if claim.less_is_better else "≥"
            asked = "" if claim.floor is None else f"{relation} {claim.floor:g}"
            aim = "" if claim.aim is None else f"{relation} {claim.aim:g}"
            value, verdict = ("–", "not measured") if found is None else (_digits(found), reached(claim, found.value))
            rows.append((comparison.name, claim.name, value, asked, aim, verdict))
    return Table(("comparison", "figure", "measured (interval)", "floor", "aim", "reached"), rows, left=2)


def entries_table(comparison: Comparison, outcome: Outcome) -> Table:
    """One row each: tokens a second, against the baseline, share of the limit, peak memory."""
    more = GPU_COLUMNS if on_gpu(outcome) else ("peak, GB", "CPU ms a token")
    columns = ("", "parameters", "tokens/s", "ratio (interval)", "of the limit", *more)
    known = [each.name for each in comparison.entries if each.name in outcome.entries]
    baseline = outcome.entries.get(comparison.baseline, Measured())
    rows = [_row(name, outcome.entries[name], baseline, comparison, outcome) for name in known]
    return Table(columns, [(*row, *[""] * (len(columns) - len(row))) for row in rows])


def on_gpu(outcome: Outcome) -> bool:
    """Whether an outcome was measured on a GPU."""
    return "device" in outcome.machine


def _row(
    name: str, measured: Measured, baseline: Measured, comparison: Comparison, outcome: Outcome
) -> tuple[str, ...]:
    if not measured.seconds:
        return name, measured.failure or "not measured"
    ratio, of_limit = paired(measured, baseline), share(outcome, comparison, measured)
    rate = statistics.median(speeds(measured))
    peak = f"{measured.peak / 1e9:.2f}"
    more: tuple[str, ...]
    if on_gpu(outcome):
        of_data_sheet, first = mfu(outcome, measured), measured.about.get("first_step")
        more = (
            "" if of_data_sheet is None else f"{of_data_sheet.value:.0%}",
            f"{1e3 * statistics.median(measured.seconds):.2f}",
            "" if first is None else f"{first:.0f}",
            peak,
        )
    else:
        cpu = 1e3 * statistics.median(measured.cpu_seconds) / measured.about["tokens"]
        more = (peak, f"{cpu:.2f}")
    return (
        name + (f" ({measured.failure})" if measured.failure else ""),
        f"{measured.about['n_params'] / 1e6:,.0f}M" if measured.about["n_params"] else "",
        f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}",
        "1" if measured is baseline else "" if ratio is None else _digits(ratio),
        "" if of_limit is None else f"{of_limit.value:.0%}",
        *more,
    )


def _digits(found: Figure) -> str:
    """Two decimals, or three digits."""
    return str(found) if found.value < 100 else f"{found.value:,.0f} ({found.low:,.0f}–{found.high:,.0f})"


def remarks(comparison: Comparison, outcome: Outcome) -> Iterator[str]:
    """Below a table: the limit, how series grow, the date."""
    name, unit, unit_name = (GPU_LIMITS if on_gpu(outcome) else LIMITS)[comparison.limit]
    if outcome.limit:
        low, middle, high = (f(outcome.limit) / unit for f in (min, statistics.median, max))
        yield f"{name}: {middle:,.0f} {unit_name}, from {low:,.0f} to {high:,.0f} over the run"
    if outcome.data_sheet and comparison.limit == "gemm_bf16":
        yield f"by the maker's data sheet, of which MFU is a share: {outcome.data_sheet / 1e12:,.0f} TFLOP/s"
    if any("first_step" in each.about for each in outcome.entries.values()) and on_gpu(outcome):
        yield "the first step includes compilation; a graph that an earlier comparison of the run compiled is cached"
    for series in dict.fromkeys(each.series for each in comparison.entries if each.series):
        if (found := powers(outcome, comparison, series)) is not None:
            yield f"{series}: CPU time grows as T^{found[0]:.2f}, memory to read as T^{found[1]:.2f}"
    n_rounds = max((len(each.seconds) for each in outcome.entries.values()), default=0)
    yield f"{n_rounds} rounds, {outcome.date}"


def pairs(results: Results, device: str) -> list[tuple[Comparison, Outcome]]:
    """What there is of a device, in the comparisons' own order."""
    of = results.get(device, {})
    return [(each, of[each.name]) for each in comparisons(device, Scale.of(device, long=True)) if each.name in of]


def write(results: Results, path: Path) -> None:
    """`RESULTS.md`: everything that is known, whichever run measured it."""
    parts = [
        "# Speed\n\nWritten by `make bench`; [docs/speed.md](../docs/speed.md) says how it is measured and how to read "
        "it; `results.json` has every round."
    ]
    for device in results:
        of = pairs(results, device)
        if not of:
            continue
        machines = list(dict.fromkeys(_machine(outcome) for _, outcome in of))
        parts.append(f"## {DEVICES.get(device, device)}: {'; '.join(machines)}")
        parts.append(claims_table(of).markdown())
        for comparison, outcome in of:
            parts.append(f"### {comparison.name}\n\n{comparison.text}")
            parts.append(entries_table(comparison, outcome).markdown())
            parts.append(". ".join(_sentence(each) for each in remarks(comparison, outcome)) + ".")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def show(of: Sequence[tuple[Comparison, Outcome]], console: Console) -> None:
    """The same in the terminal."""
    for comparison, outcome in of:
        console.print(entries_table(comparison, outcome).terminal(comparison.name))
        console.print("; ".join(remarks(comparison, outcome)), style="dim", highlight=False)
        console.print()
    console.print(claims_table(of).terminal("what is claimed"))


def _machine(outcome: Outcome) -> str:
    about = outcome.machine
    device = f"{about['device']}, {about.get('driver', 'driver unknown')}, beside " if "device" in about else ""
    return (
        f"{device}{about['processor']}, {about['cores']} cores, {about['memory']}; PyTorch {about['torch']}, "
        f"{about['threads']} threads, Python {about['python']}"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
