"""Profile a training step of gpt127: its operations by self time.

    python benchmarks/profile_step.py                          2 × 512 tokens, bfloat16 by autocast, on the CPU
    python benchmarks/profile_step.py --precision float32 --shapes
    python benchmarks/profile_step.py --device cuda

Profiling slows the step down; shares are relative to the profiled step.
"""

import argparse
from functools import partial
from typing import get_args

from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from gptstar.training.memory import keep_freed_memory
from speed.job import seconds_a_step
from speed.peers.ours import training
from speed.scale import Scale
from speed.steps import Precision

ROUNDS = 3


def main() -> None:
    """Profile steps, and print the slowest operations."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--precision", choices=get_args(Precision), default="bf16")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--shapes", action="store_true", help="operations of different shapes apart")
    options.add_argument("--rows", type=int, default=25, help="(default: %(default)s)")
    given, console = options.parse_args(), Console()
    scale = Scale.of(given.device)
    keep_freed_memory()
    with console.status("the model, and steps to warm up"):
        job = training(
            scale.gpt127, precision=given.precision, batch=scale.batch, context=scale.context, device=given.device
        )
        step = partial(seconds_a_step, job.round.step, 1, given.device)
        steps = [step() for _ in range(ROUNDS)]
    on_gpu = given.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=given.shapes) as profiler:
        times = [step() for _ in range(ROUNDS)]
    operations = profiler.key_averages(group_by_input_shape=given.shapes)
    own = {e: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in operations}  # microseconds
    whole = sum(own.values())
    table = Table("operation", "share", "calls", *(["shapes"] if given.shapes else []))
    for event in sorted(operations, key=lambda e: -own[e])[: given.rows]:
        shapes = [str([each for each in event.input_shapes if each])] if given.shapes else []
        table.add_row(event.key[:60], f"{own[event] / whole:.1%}", f"{event.count / ROUNDS:.0f}", *shapes)
    console.print(table)
    tokens = scale.batch * scale.context
    console.print(f"{tokens:,} tokens a step: {min(steps):.3f} s, while profiled {min(times):.3f} s", highlight=False)


if __name__ == "__main__":
    main()
