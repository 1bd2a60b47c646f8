"""Every kind of positions reads 16,384 tokens in memory that grows with the length, not with its square."""

import json
import subprocess
import sys

import pytest

from gptstar.model.positions import POSITIONS

PEAK = """
import json
import sys
import torch
from gptstar.evaluation.length.reading import measured
from gptstar.model import GPT, GPTConfig
torch.set_num_threads(1)
n_ctx = 16_384 if sys.argv[1] == "learned" else None
sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "n_vocab": 31} | json.loads(sys.argv[3])
model = GPT(GPTConfig(**sizes, positions=sys.argv[1], n_ctx=n_ctx)).eval()
with torch.inference_mode():
    model.hidden(torch.randint(31, (1, 64)))  # what a first run sets up
    with measured(torch.device("cpu")) as cost:
        model.hidden(torch.randint(31, (1, int(sys.argv[2]))))
print(cost.memory - cost.held)
"""
BUILT_IN = [name for name in POSITIONS.names() if POSITIONS.find(name).__module__.startswith("gptstar.")]
ALL_SCORES = 2 * 16_384**2 * 4
"""Bytes of the scores of two heads: 2.1 GB."""


def peak_of(kind: str, length: int, modifiers: dict[str, object]) -> int:
    command = [sys.executable, "-c", PEAK, kind, str(length), json.dumps(modifiers)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak on request")
@pytest.mark.parametrize("kind", BUILT_IN)
@pytest.mark.parametrize(
    "modifiers", [{}, {"attention_window": 512, "attention_sinks": 4, "softmax_scale": "ssmax"}], ids=["full", "cut"]
)
def test_memory_grows_with_the_length(kind: str, modifiers: dict[str, object]) -> None:
    half, whole = (peak_of(kind, length, modifiers) for length in (8192, 16_384))
    assert whole < 2.2 * half
    assert whole < ALL_SCORES / 3
