"""Time and peak memory of reading one window, by its length: GPT-303*'s shape with random weights, on this machine.

Each length is read in a process of its own, whose peak is the operating system's. Beyond 8,192 tokens a CPU takes
minutes. Run: python benchmarks/long_context.py 1024 2048 4096 8192
"""

import argparse
import resource
import subprocess
import sys
import time

import torch

from gptstar.evaluation.length.reading import growth, losses_of
from gptstar.model import GPT, GPTConfig

GPT303 = GPTConfig(n_layers=8, d_model=1536, n_heads=8, n_vocab=50257)


def read_once(length: int, device: torch.device) -> None:
    """Print the seconds of a window's losses, those of all cores, the peak in bytes, and what was held before."""
    torch.manual_seed(0)
    model = GPT(GPT303).eval().to(device)
    tokens = torch.randint(GPT303.n_vocab, (1, length + 1))
    losses = losses_of(model, device)
    losses(tokens[:, :65], 0)  # what is set up once
    if device.type == "cuda":
        losses(tokens, 0)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if device.type == "cuda" else peak()
    start, start_cpu = time.perf_counter(), time.process_time()
    found = losses(tokens, 0).cpu()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    most = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak()
    assert found.shape == (1, length)
    assert torch.isfinite(found).all()
    print(seconds, cpu_seconds, most, held)


def peak() -> int:
    """The most memory this process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Read each length and print a table, and the powers by which time and memory grow."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("lengths", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        read_once(given.lengths[0], torch.device(given.device))
        return
    print(f"{GPT303.n_params:,} parameters, float32, {given.device}, {torch.get_num_threads()} threads")
    rows = []
    for length in given.lengths:
        command = [sys.executable, __file__, str(length), "--one", "--device", given.device]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, cpu_seconds, most, held = (float(number) for number in done.stdout.split())
        rows.append((length, seconds if "cuda" in given.device else cpu_seconds, most - held))
        print(
            f"{length:7,} tokens  {seconds:8.2f} s ({cpu_seconds:8.2f} of all cores)  peak {most / 1e9:6.2f} GB, "
            f"{(most - held) / 1e9:.2f} GB of it to read",
            flush=True,
        )
    lengths = [row[0] for row in rows]
    powers = growth(lengths, [row[1] for row in rows]), growth(lengths, [row[2] for row in rows])
    # Of a CPU the time of all cores: others may be using them too.
    print(f"time grows as T^{powers[0]:.2f}, memory to read as T^{powers[1]:.2f}")


if __name__ == "__main__":
    main()
