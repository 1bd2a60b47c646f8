"""The comparison of speed in sizes for tests."""

from dataclasses import replace

from gptstar.model import GPTConfig
from speed import store
from speed.comparisons import comparisons
from speed.engine import Measured, Outcome
from speed.scale import Scale

STAR = GPTConfig(n_layers=2, d_model=24, n_heads=4, n_vocab=101)

GPT2 = GPTConfig(n_layers=3, d_model=16, n_heads=2, n_vocab=103, residual="sequential", positions="learned", n_ctx=62)

TINY = Scale(
    gpt127=STAR,
    gpt303=replace(STAR, d_model=32),
    gpt2_small=GPT2,
    gpt2_304m=replace(GPT2, n_layers=4),
    batch=2,
    context=31,
    prompt=13,
    n_new=3,
    slow_new=2,
    prefill=17,
    rows=3,
    lengths=(67, 131),
    far=131,
    original_length=67,
    address_space=None,
    loop_steps=2,
    loop=(
        "data=bundled",
        "model.n_layers=1",
        "model.d_model=16",
        "model.n_heads=2",
        "model.n_vocab=300",
        "data.context_length=32",
        "data.block_tokens=64",
        "batch_tokens=256",
        "hardware.micro_batch_size=4",
        "hardware.precision=float32",
        "schedule.warmup_steps=3",
    ),
)

ALL = comparisons("cpu", TINY)


def outcome(**seconds: list[float]) -> Outcome:
    """What two entries of ten tokens a step, a hundred operations a token, would have left."""
    about = {"tokens": 10.0, "flops": 100.0, "weight_bytes": 0.0, "n_params": 7.0, "held": 100.0}
    entries = {
        name: Measured(dict(about), list(of), list(of), peak=1000.0 * (number + 1))
        for number, (name, of) in enumerate(seconds.items())
    }
    return Outcome(
        "2026-01-02",
        {"processor": "none", **dict.fromkeys(("cores", "memory", "torch", "threads", "python"), "1")},
        [1e4] * 4,
        None,
        entries,
    )


def results(ours: list[float], theirs: list[float]) -> store.Results:
    found = outcome(**{"ours": ours, "Hugging Face GPT-2": theirs})
    return {"cpu": {"prefill": found}}
