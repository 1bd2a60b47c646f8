"""Tables of results on tasks with published results: for the terminal, and as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gptstar.evaluation.results import Metric, TaskResult, TaskResults, grouped_by
from gptstar.evaluation.tables import markdown_table
from gptstar.evaluation.tasks.published import Row, published_rows
from gptstar.terminal import in_markdown

COLUMNS = (
    ("lambada_openai", "acc"),
    ("lambada_openai", "perplexity"),
    ("wikitext", "word_perplexity"),
    ("piqa", "acc"),
    ("hellaswag", "acc"),
    ("winogrande", "acc"),
)
"""The metrics that are compared with published figures."""

FIGURE_COLUMNS = (
    "task", "version", "metric", "value", "95 % interval", "method", "items", "few-shot", "context", "items from",
)  # fmt: skip

SHORT = {"acc": "acc %", "perplexity": "ppl", "word_perplexity": "word ppl"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Comparison:
    """A table of models, tokens and figures. The first `n_ours` rows are ours; an interval is a cell's second line."""

    header: list[str]
    rows: list[list[str]]
    notes: list[str]
    n_ours: int


def task_table(results: TaskResults) -> RenderableType:
    """Return our results with 95 % intervals and the published ones for the terminal; other tasks follow as a list."""
    parts: list[RenderableType] = [Text(title(results), style="italic")]
    comparison = compared(results)
    if comparison is not None:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for number, name in enumerate(comparison.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for number, row in enumerate(comparison.rows, start=1):
            style = "bold" if number <= comparison.n_ours else ""
            table.add_row(*row, style=style, end_section=number == comparison.n_ours)
        parts.append(table)
    published_on = published_rows().tasks
    grouped, hidden = grouped_by(results.tasks), _tasks_of_groups(results)
    listed = [task for task in results.tasks if task.task not in (*published_on, *hidden)]
    others = [(task, metric) for task in listed for metric in task.metrics]
    if others:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for name in ("task", "metric", "ours", "95 % interval", "items"):
            table.add_column(name, justify="left" if name in ("task", "metric") else "right")
        for task, metric in others:
            name = f"- {task.task}" if task.task in grouped else task.task
            table.add_row(name, _name(metric), value(metric), interval(metric), f"{metric.items:,}")
        parts.append(table)
    for number, note in enumerate(comparison.notes if comparison else (), start=1):
        parts.append(Text(f"{number}".translate(SUPERSCRIPT) + f" {note}", style="dim"))
    if hidden:
        parts.append(Text(f"results.md has the {len(hidden):,} tasks of the groups, too", style="dim"))
    if results.protocol.get("predict_only"):
        parts.append(Text("predict_only: no metrics; samples_*.jsonl has the model's answers"))
    return Group(*parts, *map(Text, copies_notes(results)))


def task_markdown(results: TaskResults) -> str:
    """Return the results as Markdown: the protocol, the comparison, all metrics, and all sources."""
    lines = [f"# {title(results)}", ""]
    for name in ("path", "sha256", "n_params", "step", "tokens"):
        content = results.checkpoint.get(name)
        if content is not None:
            lines.append(f"- {name}: {content:,}" if isinstance(content, int) else f"- {name}: `{content}`")
    for name, content in (*results.protocol.items(), ("versions", results.versions)):
        if isinstance(content, dict):
            content = ", ".join(f"{key} {each}" for key, each in content.items())
        if content is not None:
            lines.append(f"- {name}: {content}")
    lines.append("")
    comparison = compared(results)
    if comparison is not None:
        header = [name.replace("\n", " ") for name in comparison.header]
        rows = [list(map(_in_one_line, row)) for row in comparison.rows]
        lines += [*markdown_table(header, rows, n_left=1), ""]
        lines += [f"{number}. {note}" for number, note in enumerate(comparison.notes, start=1)]
    lines += ["", "## All metrics", ""]
    figures = [_figure_row(task, metric) for task in results.tasks for metric in task.metrics]
    lines += [*markdown_table(FIGURE_COLUMNS, figures, n_left=3), ""]
    for note in copies_notes(results):
        lines += [note, ""]
    lines = [in_markdown("\n".join(lines))]
    if comparison is not None:
        lines += ["Sources of the published figures:", ""]
        lines += [f"- {link}" for link in published_rows().sources.values()]
    return "\n".join(lines) + "\n"


def _tasks_of_groups(results: TaskResults) -> set[str]:
    """Return the tasks that the terminal shows only through their group."""
    return {member for task in results.tasks for member in task.members} - set(published_rows().tasks)


def copies_notes(results: TaskResults) -> list[str]:
    """Return a line for each task with items that are copies of each other."""
    return [
        f"{task.task}: {task.n_copies:,} of {len(task.samples):,} items are copies of earlier ones; an item and its "
        "copies are one cluster."
        for task in results.tasks
        if task.n_copies
    ]


def _figure_row(task: TaskResult, metric: Metric) -> list[str]:
    source = task.source
    if task.members:
        origin = f"its {len(task.members):,} tasks"
    elif "path" in source:
        assumed = f"for the {source['stands_for']} split" if source.get("stands_for") else "split not stated"
        origin = f"`{source['path']}` ({source.get('split') or assumed}), sha256 `{source['sha256'][:12]}…`"
    else:
        revision = f" at {source['revision'][:12]}" if source.get("revision") else ""
        origin = f"{source.get('dataset')} ({source.get('split')}){revision}"
    figure = [_name(metric), value(metric), interval(metric) or "–", metric.method, f"{metric.items:,}"]
    return [task.task, task.version, *figure, str(task.num_fewshot), f"{task.context_length:,}", origin]


def compared(results: TaskResults) -> Comparison | None:
    """Compare our results with the published ones; None if no task has published results."""
    published = published_rows()
    by_name = {task.task: task for task in results.tasks}
    ours = {(task, name): metric_of(by_name[task], name) for task, name in COLUMNS if task in by_name}
    columns = [column for column, metric in ours.items() if metric]
    if not columns:
        return None
    notes: list[str] = []
    differing = {task: differences(by_name[task], ours[task, name]) for task, name in columns}
    differing = {task: words for task, words in differing.items() if words}
    note = "; ".join(f"{published.tasks[task].title} {words}" for task, words in differing.items())
    header = ["model", "tokens"]
    for task, name in columns:
        mark = _mark(notes, [f"differs from the published protocol: {note}"] if task in differing else [])
        header.append(f"{published.tasks[task].title}\n{SHORT[name]}{mark}")
    tokens = results.checkpoint.get("tokens")
    model = [str(results.checkpoint["name"]), "" if tokens is None else _brief(tokens)]
    rows = [[*model, *(_cell(ours[column]) for column in columns)]]
    normed = [_cell(metric_of(by_name[task], "acc_norm") if name == "acc" else None) for task, name in columns]
    if any(normed):
        rows.append(["… acc_norm", "", *normed])
    clean = [_cell(metric_of(by_name[task], name, "clean")) for task, name in columns]
    if any(clean):
        mark = _mark(notes, ["only items that share no run of words with the training text"])
        rows.append([f"… clean{mark}", "", *clean])
    n_ours = len(rows)
    wikitext = by_name["wikitext"].context_length if "wikitext" in by_name else None
    rows += [_published_row(row, columns, wikitext, notes) for row in published.rows]
    return Comparison(header, rows, notes, n_ours)


def _published_row(
    row: Row, columns: Sequence[tuple[str, str]], wikitext_context: int | None, notes: list[str]
) -> list[str]:
    texts = published_rows().notes
    mark = _mark(notes, [texts[row.tokens_note]] if row.tokens_note else [])
    cells = [row.model + _mark(notes, [texts[note] for note in row.notes]), _brief(row.training_tokens) + mark]
    for task, name in columns:
        figure = row.figure(task, name)
        if figure is None:
            cells.append("–")
            continue
        number = f"{100 * figure.value:.2f}" if name == "acc" else _perplexity(figure.value)
        about = [texts[note] for note in figure.notes]
        if task == "wikitext" and figure.context_length not in (None, wikitext_context):
            about.append(f"at a context of {figure.context_length:,} tokens")  # other tasks' items fit into any
        cells.append(number + _mark(notes, about))
    return cells


def _mark(notes: list[str], texts: Iterable[str]) -> str:
    """Return the superscript numbers of footnotes, and add new footnotes to `notes`."""
    numbers = []
    for text in texts:
        if text not in notes:
            notes.append(text)
        numbers.append(str(notes.index(text) + 1).translate(SUPERSCRIPT))
    return "·".join(numbers)


def metric_of(task: TaskResult, name: str, subset: str | None = None) -> Metric | None:
    """Return a task's metric by name; None if it has no such metric."""
    return next((each for each in task.metrics if (each.name, each.subset) == (name, subset)), None)


def differences(task: TaskResult, metric: Metric | None) -> str:
    """Describe how the protocol of our figure differs from the published one: items, split or few-shot examples."""
    published, split, words = published_rows().tasks[task.task], task.source.get("split"), []
    if metric is not None and metric.items != published.items:
        words.append(f"{metric.items:,} of {published.items:,} items")
        if "path" in task.source and split is None:
            words.append("the file does not say of which split")
    if split not in (None, published.split):
        words.append(f"{split} split instead of {published.split}")
    if task.num_fewshot:
        words.append(f"{task.num_fewshot} examples before each item")
    return ", ".join(words)


def title(results: TaskResults) -> str:
    """Return a title with the checkpoint, the precision and the context lengths."""
    limit = results.protocol.get("limit")
    contexts = " and ".join(f"{length:,}" for length in sorted({task.context_length for task in results.tasks}))
    line = f"{results.checkpoint['name']}, {results.protocol.get('dtype')}, context {contexts}"
    return f"{line}, only the first {limit:,} items of each task" if limit else line


def is_share(metric: Metric) -> bool:
    """Whether a metric is shown as a percentage."""
    return metric.name.startswith(("acc", "exact_match", "f1", "em")) and 0 <= metric.value <= 1


def value(metric: Metric) -> str:
    """Format a metric's value: percentages and perplexities with two decimals, others with four digits."""
    if is_share(metric):
        return f"{100 * metric.value:.2f}"
    return _perplexity(metric.value) if metric.kind == "perplexity" else f"{metric.value:.4g}"


def interval(metric: Metric) -> str:
    """Format a metric's 95 % interval in the same unit; empty if it has none."""
    if metric.low is None or metric.high is None:
        return ""
    if is_share(metric):
        return f"{100 * metric.low:.1f}–{100 * metric.high:.1f}"
    return f"{_brief(metric.low)}–{_brief(metric.high)}"


def _cell(metric: Metric | None) -> str:
    return f"{value(metric)}\n{interval(metric)}".rstrip() if metric else ""


def _in_one_line(cell: str) -> str:
    figure, _, ends = cell.partition("\n")
    return f"{figure} ({ends})" if ends else figure


def _name(metric: Metric) -> str:
    return f"{metric.name} ({metric.subset} items)" if metric.subset else metric.name


def _perplexity(number: float) -> str:
    if number < 1000:
        return f"{number:.2f}"
    return f"{number:,.0f}" if number < 1e6 else f"{number:.2e}"


def _brief(number: float) -> str:
    """Format a number in about five characters."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}" if number < 1000 * unit else f"{number:.1e}"
    return f"{number:.1f}" if number >= 10 else f"{number:.3g}"
