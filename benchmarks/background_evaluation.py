"""Measure how much background evaluation (`evaluation.every_n_steps`) slows a training run.

    python benchmarks/background_evaluation.py --data_dir DIR     # made by `gptstar evaluation bundle DIR --tasks piqa`

Runs of the quickstart's size are timed in turn, with evaluations and without: once on cores that both processes share,
and once with a core for each, as where evaluations have a device of their own. A checkpoint is evaluated at all times.
Both kinds of run save the same steps. Prints tokens per second, and the ratio by round. 20 minutes on two cores; Linux.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gptstar.training.metrics_csv import read_metrics

ROOT = Path(__file__).parents[1]
EVERY, STEPS = 40, 160


def main() -> None:
    """Time the rounds, and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="a folder with piqa.jsonl")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    options = parser.parse_args()
    table = Table(
        "cores", "tokens/s without", "with", "share kept, by round", title="training while checkpoints are evaluated"
    )
    for cores in ("shared", "own"):
        rounds = [
            [speed(cores, with_tasks, options.data_dir) for with_tasks in (False, True)] for _ in range(options.rounds)
        ]
        without, with_tasks = (statistics.median(each) for each in zip(*rounds, strict=True))
        shares = ", ".join(f"{after / before:.3f}" for before, after in rounds)
        table.add_row(cores, f"{without:,.0f}", f"{with_tasks:,.0f}", shares)
    Console(width=100).print(table)


def speed(cores: str, with_tasks: bool, data_dir: Path) -> float:
    """The median of a run's tokens per second at its rows, without the first."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        words = [
            f"output={output}",
            f"total_steps={STEPS}",
            "report=false",
            "log_every=10",
            f"checkpoint_every={EVERY}",
        ]
        words += [f"validate_every={STEPS}"]
        if with_tasks:
            words += [f"evaluation.every_n_steps={EVERY}", "evaluation.tasks=[piqa]", f"evaluation.data_dir={data_dir}"]
        own = cores == "own"
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if own else {})
        command = [sys.executable, str(ROOT / "train.py"), *words]
        run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if own:
            os.sched_setaffinity(run.pid, {0})
        while run.poll() is None:
            for evaluator in evaluators_of(run.pid) if own else ():
                for thread in Path(f"/proc/{evaluator}/task").iterdir():
                    os.sched_setaffinity(int(thread.name), {1})
            time.sleep(0.5)
        if run.returncode != 0:
            sys.exit((run.stderr.read() if run.stderr else b"").decode())
        speeds = [row["tokens_per_second"] for row in read_metrics(output) if "tokens_per_second" in row]
        return statistics.median(speeds[1:])


def evaluators_of(pid: int) -> list[int]:
    """The processes that evaluate for a run."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in children if b"tasks.background" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except OSError:  # it has just ended
        return []


if __name__ == "__main__":
    main()
