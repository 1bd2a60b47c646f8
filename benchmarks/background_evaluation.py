"""Measure how much background evaluation (`evaluation.every_n_steps`) slows a training run.

    python benchmarks/background_evaluation.py --data_dir DIR     # made by `gptstar evaluation bundle DIR --tasks piqa`

Runs of the quickstart's size are timed in turn, with evaluations and without: once on cores that both processes share,
and once with a core for each, as where evaluations have a device of their own. A checkpoint is evaluated at all times.
Both kinds of run save the same steps. Prints tokens per second, the ratio by round, and the share of a run's time in
which its own process looked for results, recorded them and began the next evaluation. With a device of their own, that
share is all that evaluations can take from training but for memory and disk, which they share. 20 minutes on two cores;
Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
        *("cores", "tokens/s without", "with", "ratio, by round", "% of the time in the run's process"),
        title="training while checkpoints are evaluated",
    )
    for cores in ("shared", "own"):
        rounds = [
            [timed(cores, with_tasks, options.data_dir) for with_tasks in (False, True)] for _ in range(options.rounds)
        ]
        without, with_tasks = (statistics.median(speed for speed, _ in each) for each in zip(*rounds, strict=True))
        ratios = ", ".join(f"{after / before:.3f}" for (before, _), (after, _) in rounds)
        shares = ", ".join(f"{100 * share:.3f}" for _, (_, share) in rounds)
        table.add_row(cores, f"{without:,.0f}", f"{with_tasks:,.0f}", ratios, shares)
    Console(width=110).print(table)


def timed(cores: str, with_tasks: bool, data_dir: Path) -> tuple[float, float]:
    """Train, and return the median of tokens per second, and the share of the time that evaluations took in it."""
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
        command = [sys.executable, __file__, "--train", str(Path(folder) / "seconds.json"), *words]
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
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
        return statistics.median(speeds[1:]), seconds["evaluations"] / seconds["steps"]


def train(report: Path, words: list[str]) -> None:
    """Run train.py here, and write the seconds from the first step to the last, and those that evaluations took."""
    sys.argv = [str(ROOT / "train.py"), *words]
    sys.path.insert(0, str(ROOT))
    from gptstar.launch.train import main as run
    from gptstar.training.evaluations import EvaluateCheckpoints

    seconds, ends, after_step = [0.0], [], EvaluateCheckpoints.on_train_batch_end

    def measured(self: EvaluateCheckpoints, *step: Any, **more: Any) -> None:
        began = time.perf_counter()
        after_step(self, *step, **more)
        ends.append(time.perf_counter())
        seconds[0] += ends[-1] - began

    EvaluateCheckpoints.on_train_batch_end = measured  # type: ignore[method-assign]
    try:
        run()
    finally:  # it ends by sys.exit
        steps = ends[-1] - ends[0] if ends else 1.0  # without evaluations there is nothing to measure
        report.write_text(json.dumps({"evaluations": seconds[0], "steps": steps}))


def evaluators_of(pid: int) -> list[int]:
    """The processes that evaluate for a run."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(each) for each in children if b"tasks.background" in Path(f"/proc/{each}/cmdline").read_bytes()]
    except OSError:  # it has just ended
        return []


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
