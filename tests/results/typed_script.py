"""What a researcher might write: every function of gptstar.results, typed."""

from pathlib import Path

from gptstar import results


def best(folder: str | Path) -> str:
    """The name of the run with the lowest loss."""
    runs = results.runs(folder)
    finished = runs[runs["state"] == "finished"].sort_values("validation_loss")
    return str(finished["run"].iloc[0])


def main(folders: list[Path]) -> None:
    runs = results.runs(folders, "runs/*-seed-*")
    curves = results.curves(folders)
    lengths = results.lengths(*folders, "results/mine")
    tasks = results.tasks(folders, ["results/mine/results.json"])
    others = (results.heads(folders), results.recall(*folders), results.recall_rates(folders))
    factors: list[str] = results.varied(runs)
    effects = results.effects(runs, factors, "validation_loss", against="128", ratio=False)
    compared = results.compare("results/a", Path("results/b"))
    for frame in (runs, curves, lengths, tasks, effects, compared, *others):
        print(len(frame), list(frame.columns))
    source: results.Source = [Path("runs"), ("results/a", "results/b")]
    print(results.lengths(source)["change"].mean(), best("runs"))


if __name__ == "__main__":
    main([Path("runs")])
