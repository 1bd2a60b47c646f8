"""What a report says of benchmarks: scores at the end, and how they changed while runs trained."""

from collections.abc import Iterator

import pandas as pd

from gptstar.checkpoint.read import AVERAGED
from gptstar.plots.lines import Line, Point
from gptstar.plots.score_curves import ScoreCurves, draw_score_curves
from gptstar.results.section import Section

LONG = 12
"""Lines of a table that is shown only when a reader opens it."""

FEW = 3
"""Checkpoints of a run that a table shows; of more it shows the last, and a plot shows all."""


def task_sections(tasks: pd.DataFrame) -> Iterator[Section]:
    """Show the frame of `tasks` in a table, and in a plot where runs were evaluated at several steps."""
    if tasks.empty:
        return
    kind = tasks["checkpoint"].str.endswith(AVERAGED).rename("averaged")
    score = ["run", kind, "task", "metric", "subset"]
    n_checkpoints = tasks.groupby(score)["tokens"].transform("nunique")
    is_last = tasks["tokens"].isna() | (tasks["tokens"] == tasks.groupby(score)["tokens"].transform("max"))
    shown = tasks[(n_checkpoints <= FEW) | is_last]
    figures = [
        f"{line['value']:.4f}" + ("" if pd.isna(line["low"]) else f" [{line['low']:.4f}, {line['high']:.4f}]")
        for line in shown.to_dict("records")
    ]
    table = shown.assign(score=figures)[["run", "checkpoint", "task", "metric", "subset", "score", "items"]]
    of_last = " The table has the last checkpoint of each run; `gptstar.results.tasks` lists all." * (
        len(shown) < len(tasks)
    )
    text = f"Scores with 95 % intervals over items.{of_last}"
    picture = draw_score_curves(score_curves(tasks)) if (n_checkpoints > 1).any() else None
    yield Section("Benchmarks", text, table=table, picture=picture, is_long=picture is None and len(table) > LONG)


def score_curves(tasks: pd.DataFrame) -> list[ScoreCurves]:
    """Make a panel for each task, of its first metric on all items; runs with a single score have a dot.

    Tasks of a group that is there too, such as `blimp_causative` of `blimp`, come last.
    """
    whole = tasks[(tasks["subset"] == "all") & tasks["tokens"].notna()]
    names = whole["run"] + whole["checkpoint"].str.endswith(AVERAGED).map({True: " (averaged)", False: ""})
    panels = []
    for task, of_task in whole.assign(line=names).groupby("task", sort=False):
        metric = of_task["metric"].iloc[0]
        lines = [
            Line(str(name), [Point(*each) for each in scores[["tokens", "value", "low", "high"]].to_numpy().tolist()])
            for name, scores in of_task[of_task["metric"] == metric].sort_values("tokens").groupby("line", sort=False)
        ]
        panels.append(ScoreCurves(str(task), str(metric), lines))
    names = [panel.task for panel in panels]
    return sorted(panels, key=lambda panel: any(panel.task.startswith(f"{name}_") for name in names))
