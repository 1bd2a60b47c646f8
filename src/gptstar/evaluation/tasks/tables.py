"""Results on tasks beside the published rows: for the terminal, and as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gptstar.evaluation.results import Metric, TaskResult, TaskResults
from gptstar.evaluation.tasks.published import Published, Row

COLUMNS = (
    ("lambada_openai", "acc"),
    ("lambada_openai", "perplexity"),
    ("wikitext", "word_perplexity"),
    ("piqa", "acc"),
    ("hellaswag", "acc"),
    ("winogrande", "acc"),
)
"""What is set beside published figures."""

SHORT = {"acc": "acc %", "perplexity": "ppl", "word_perplexity": "word ppl"}


@dataclass
class Footnotes:
    """Notes in the order in which they are first needed."""

    texts: list[str] = field(default_factory=list)

    def mark(self, notes: Iterable[str]) -> str:
        """Superscript numbers of notes."""
        numbers = []
        for note in notes:
            if note not in self.texts:
                self.texts.append(note)
            numbers.append(self.texts.index(note) + 1)
        return "·".join(str(number).translate(SUPERSCRIPT) for number in numbers)


SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Comparison:
    """Ours and published figures as text: a header, then rows of `model, tokens, figure, …`; figures have two lines."""

    header: list[str]
    rows: list[list[tuple[str, str]]]
    notes: list[str]
    ours: int


def task_table(results: TaskResults, published: Published) -> RenderableType:
    """Ours with 95 % intervals, then the published rows, for the terminal; what was never published on in a list."""
    parts: list[RenderableType] = [Text(title(results), style="italic")]
    comparison = compared(results, published)
    if comparison is not None:
        table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
        for number, name in enumerate(comparison.header):
            table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
        for number, row in enumerate(comparison.rows):
            cells = [f"{first}\n{second}" if second else first for first, second in row]
            table.add_row(
                *cells, style="bold" if number < comparison.ours else "", end_section=number == comparison.ours - 1
            )
        parts.append(table)
    if others := _others(results):
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for name in ("task", "metric", "ours", "95 % interval", "items"):
            table.add_column(name, justify="left" if name in ("task", "metric") else "right")
        for task, metric in others:
            table.add_row(task.task, _name(metric), value(metric), interval(metric) or "", f"{metric.items:,}")
        parts.append(table)
    for number, note in enumerate(comparison.notes if comparison else (), start=1):
        parts.append(Text(f"{str(number).translate(SUPERSCRIPT)} {note}", style="dim"))
    return Group(*parts)


def task_markdown(results: TaskResults, published: Published) -> str:
    """The same as a Markdown file: what was scored and how, the comparison, every figure, and all sources."""
    checkpoint, protocol = results.checkpoint, results.protocol
    lines = [f"# {title(results)}", ""]
    for name in ("path", "sha256", "n_params", "step", "tokens"):
        if checkpoint.get(name) is not None:
            shown = checkpoint[name]
            lines.append(f"- {name}: {f'{shown:,}' if isinstance(shown, int) else f'`{shown}`'}")
    for name, shown in protocol.items():
        if shown is not None:
            pairs = shown.items() if isinstance(shown, dict) else ()
            lines.append(f"- {name}: {', '.join(f'{key} {each}' for key, each in pairs) or shown}")
    lines += ["- versions: " + ", ".join(f"{name} {number}" for name, number in results.versions.items()), ""]
    comparison = compared(results, published)
    if comparison is not None:
        lines += _markdown(
            [name.replace("\n", " ") for name in comparison.header],
            [[f"{first} ({second})" if second else first for first, second in row] for row in comparison.rows],
        )
        lines += [f"{number}. {note}" for number, note in enumerate(comparison.notes, start=1)]
    lines += ["", "## Every figure", ""]
    lines += _markdown(
        ["task", "version", "metric", "value", "95 % interval", "method", "items", "few-shot", "context", "items from"],
        [
            [
                task.task,
                task.version,
                _name(metric),
                value(metric),
                interval(metric) or "–",
                metric.method,
                f"{metric.items:,}",
                str(task.num_fewshot),
                f"{task.context_length:,}",
                _source(task),
            ]
            for task in results.tasks
            for metric in task.metrics
        ],
    )
    if comparison is not None:
        lines += ["Published figures are from", ""]
        used = {figure.source for row in published.rows for figure in row.figures}
        used |= {row.tokens_source for row in published.rows}
        lines += [f"- [{source.title}]({source.url})" for name, source in published.sources.items() if name in used]
    return "\n".join(lines) + "\n"


def compared(results: TaskResults, published: Published) -> Comparison | None:
    """Ours beside the published rows; None where no task of ours was published on."""
    by_name = {task.task: task for task in results.tasks}
    ours = {(task, name): metric_of(by_name[task], name) for task, name in COLUMNS if task in by_name}
    columns = [column for column, metric in ours.items() if metric]
    if not columns:
        return None
    footnotes = Footnotes()
    apart = {task: differences(by_name[task], ours[task, name], published) for task, name in columns}
    apart = {task: found for task, found in apart.items() if found}
    note = "; ".join(f"{published.tasks[task].title} {found}" for task, found in apart.items())
    header = ["model", "tokens"]
    for task, name in columns:
        mark = footnotes.mark([f"not what the published figures are over: {note}"] if task in apart else [])
        header.append(f"{published.tasks[task].title}\n{SHORT[name]}{mark}")
    rows = [[(str(results.checkpoint["name"]), ""), (_tokens(results.checkpoint.get("tokens")), "")]]
    rows[0] += [_ours(ours[column]) for column in columns]
    normed = [metric_of(by_name[task], "acc_norm") if name == "acc" else None for task, name in columns]
    if any(normed):
        rows.append([("… acc_norm", ""), ("", ""), *map(_ours, normed)])
    clean = [metric_of(by_name[task], name, "clean") for task, name in columns]
    if any(clean):
        mark = footnotes.mark(["only items that share no run of words with the training text"])
        rows.append([(f"… clean{mark}", ""), ("", ""), *map(_ours, clean)])
    contexts = {task: by_name[task].context_length for task, _ in columns}
    theirs = [_published_row(row, columns, published, contexts, footnotes) for row in published.rows]
    return Comparison(header, rows + theirs, footnotes.texts, len(rows))


def metric_of(task: TaskResult, name: str, subset: str | None = None) -> Metric | None:
    """A task's metric by name."""
    return next((each for each in task.metrics if (each.name, each.subset) == (name, subset)), None)


def differences(task: TaskResult, metric: Metric | None, published: Published) -> str:
    """What sets our own figure apart from every published one, if anything: its items, or examples before them."""
    known, found = published.tasks[task.task], []
    if metric is not None and metric.items != known.items:
        found.append(f"{metric.items:,} of {known.items:,} items")
        if "path" in task.source and task.source.get("split") is None:
            found.append("the file does not say of which split")
    if task.source.get("split") not in (None, known.split):
        found.append(f"{task.source['split']} split instead of {known.split}")
    if task.num_fewshot:
        found.append(f"{task.num_fewshot} examples before each item")
    return ", ".join(found)


def title(results: TaskResults) -> str:
    """What was scored and how, in a line."""
    limit = results.protocol.get("limit")
    contexts = sorted({task.context_length for task in results.tasks})
    parts = [str(results.checkpoint["name"]), f"{results.protocol.get('dtype')}"]
    parts.append(f"context {' and '.join(f'{each:,}' for each in contexts)}")
    return ", ".join(parts) + (f", only the first {limit:,} items of each task" if limit else "")


def is_share(metric: Metric) -> bool:
    """Whether a figure is shown as a percentage."""
    return metric.name.startswith(("acc", "exact_match", "f1", "em")) and 0 <= metric.value <= 1


def value(metric: Metric) -> str:
    """A figure: percentages and perplexities with two decimals, others with four digits."""
    if is_share(metric):
        return f"{100 * metric.value:.2f}"
    return _perplexity(metric.value) if metric.kind == "perplexity" else f"{metric.value:.4g}"


def interval(metric: Metric) -> str | None:
    """Its 95 % interval, in the same unit."""
    if metric.low is None or metric.high is None:
        return None
    if is_share(metric):
        return f"{100 * metric.low:.1f}–{100 * metric.high:.1f}"
    return f"{_brief(metric.low)}–{_brief(metric.high)}"


def _ours(metric: Metric | None) -> tuple[str, str]:
    return (value(metric), interval(metric) or "") if metric else ("", "")


def _published_row(
    row: Row,
    columns: Sequence[tuple[str, str]],
    published: Published,
    contexts: Mapping[str, int],
    footnotes: Footnotes,
) -> list[tuple[str, str]]:
    mark = footnotes.mark([published.notes[row.tokens_note]] if row.tokens_note else [])
    model = row.model + footnotes.mark(published.notes[note] for note in row.notes)
    cells = [(model, ""), (_tokens(row.training_tokens) + mark, "")]
    for task, name in columns:
        figure = row.figure(task, name)
        if figure is None:
            cells.append(("–", ""))
            continue
        shown = f"{100 * figure.value:.2f}" if name == "acc" else _perplexity(figure.value)
        notes = [published.notes[note] for note in figure.notes]
        if name == "word_perplexity" and figure.context_length not in (None, contexts[task]):
            notes.append(f"at a context of {figure.context_length:,} tokens")  # items of the others fit into either
        cells.append((shown + footnotes.mark(notes), ""))
    return cells


def _others(results: TaskResults) -> list[tuple[TaskResult, Metric]]:
    """Figures of tasks that nothing was published on."""
    known = {task for task, _ in COLUMNS}
    return [(task, metric) for task in results.tasks if task.task not in known for metric in task.metrics]


def _name(metric: Metric) -> str:
    return f"{metric.name} ({metric.subset} items)" if metric.subset else metric.name


def _perplexity(number: float) -> str:
    return f"{number:.2f}" if number < 1000 else f"{number:,.0f}" if number < 1e6 else f"{number:.2e}"


def _brief(number: float) -> str:
    """In five characters or so."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}" if number < 1000 * unit else f"{number:.1e}"
    return f"{number:.1f}" if number >= 10 else f"{number:.3g}"


def _tokens(number: int | None) -> str:
    return "" if number is None else _brief(number)


def _source(task: TaskResult) -> str:
    source = task.source
    if "path" in source:
        return f"`{source['path']}` ({source.get('split') or 'split not stated'}), sha256 `{source['sha256'][:12]}…`"
    revision = f" at {source['revision'][:12]}" if source.get("revision") else ""
    return f"{source.get('dataset')} ({source.get('split')}){revision}"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells] + [""]
