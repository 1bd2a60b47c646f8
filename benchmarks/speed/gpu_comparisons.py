"""Everything that `python benchmarks/run.py --device cuda` compares, the most valuable first."""

from typing import Any

from gptstar.model import GPTConfig
from speed.comparison import Claim, Comparison, Entry
from speed.scale import Scale

NANOGPT = "nanoGPT-shaped, compiled"
HUGGING_FACE = "Hugging Face GPT-2, compiled"
LITGPT = "litgpt pythia-160m, compiled"
AUTOCAST = "bfloat16 by autocast over float32 weights, AdamW"

FIRST_STEP = 60.0
"""Seconds that compiling and the first step may take."""

PEAK_GB = 14.0
"""Peak memory of gpt127 that a training step may take."""


def gpu_comparisons(scale: Scale, device: str = "cuda") -> tuple[Comparison, ...]:
    """All comparisons of a GPU, in the order in which they run."""
    return (
        _training(scale, device),
        _training_gpt303(scale, device),
        _loop(scale, device),
        _decoding(scale, device),
        _peers(scale, device),
        _shapes(scale, device),
        _batches(scale, device),
        prefill(scale, device),
        _compiled_decoding(scale, device),
    )


def _entry(name: str, peer: str, config: GPTConfig, batch: int, context: int, device: str, **more: Any) -> Entry:
    """A training step of a peer."""
    arguments = {"config": config, "batch": batch, "context": context, "device": device, **more}
    return Entry(name, f"peers.{peer}.training", arguments)


def _against_the_marks(gb: float | None = None) -> tuple[Claim, ...]:
    """Floors and aims of our training steps against the prototype and compiled nanoGPT."""
    return (
        Claim("speed", "ours", "prototype", 0.97, 1.12),
        Claim("speed", "ours", NANOGPT, 1.1, 1.25),
        Claim("share", "ours"),
        Claim("mfu", "ours", None, 0.4, 0.5),
        Claim("peak", "ours", None, gb),
        Claim("first", "ours", None, FIRST_STEP),
    )


def _training(scale: Scale, device: str) -> Comparison:
    sizes = scale.batch, scale.context, device
    return Comparison(
        "training",
        f"Training steps of {sizes[0]} × {sizes[1]} tokens, {AUTOCAST}. The prototype is GPT* as one compiled graph, "
        "with nothing of this project's kernels.",
        (
            _entry("ours", "ours", scale.gpt127, *sizes, precision="bf16"),
            _entry("prototype", "prototype", scale.gpt127, *sizes),
            _entry(NANOGPT, "nanogpt", scale.gpt2_small, *sizes, precision="bf16", compiled=True),
        ),
        baseline="prototype",
        limit="gemm_bf16",
        rounds=9,
        quick=5,
        claims=_against_the_marks(PEAK_GB),
    )


def _training_gpt303(scale: Scale, device: str) -> Comparison:
    sizes, deep = (scale.gpt303_batch, scale.context, device), scale.gpt2_304m
    return Comparison(
        "training-gpt303",
        f"The same at gpt303's size, {sizes[0]} × {sizes[1]} tokens. nanoGPT-shaped has {deep.n_layers} layers of "
        f"{deep.d_model:,}: as many parameters.",
        (
            _entry("ours", "ours", scale.gpt303, *sizes, precision="bf16"),
            _entry("prototype", "prototype", scale.gpt303, *sizes),
            _entry(NANOGPT, "nanogpt", deep, *sizes, precision="bf16", compiled=True),
        ),
        baseline="prototype",
        limit="gemm_bf16",
        rounds=9,
        quick=5,
        claims=_against_the_marks(),
    )


def _loop(scale: Scale, device: str) -> Comparison:
    overrides = (*scale.loop, f"log_every={scale.loop_steps}")
    arguments = {"overrides": overrides, "steps": scale.loop_steps, "device": device}
    return Comparison(
        "loop",
        "A run of gpt127 with a small vocabulary as `train.py` runs it, with loader, metrics, log and progress; and "
        "bare steps: as many micro-batches, of random tokens, with the same accumulation, clipping and optimizer.",
        (Entry("train.py", "loop.run", arguments), Entry("bare steps", "loop.bare", arguments)),
        baseline="bare steps",
        limit="gemm_bf16",
        rounds=9,
        quick=5,
        claims=(Claim("speed", "train.py", "bare steps", 0.97),),
    )


def _decoding(scale: Scale, device: str) -> Comparison:
    fast = {"prompt": scale.prompt, "n_new": scale.n_new, "device": device, "precision": "bf16"}
    slow = fast | {"n_new": scale.slow_new, "config": scale.gpt2_small}
    rows = f"gpt127, {scale.rows} rows"
    return Comparison(
        "decoding",
        f"The likeliest token at a time after a prompt of {scale.prompt} tokens, bfloat16 weights; one row where "
        "nothing else is said. Shares are of the bandwidth: bytes of weights that a step reads.",
        (
            Entry("gpt127", "peers.ours.decoding", fast | {"config": scale.gpt127}),
            Entry("gpt303", "peers.ours.decoding", fast | {"config": scale.gpt303}),
            Entry(rows, "peers.ours.decoding", fast | {"config": scale.gpt127, "batch": scale.rows}),
            Entry("Hugging Face GPT-2", "peers.huggingface.decoding", slow),
        ),
        baseline="Hugging Face GPT-2",
        limit="read_bandwidth",
        rounds=9,
        quick=5,
        claims=(
            Claim("share", "gpt127", None, 0.35),
            Claim("share", "gpt303", None, 0.5),
            Claim("speed", rows, "gpt127", 4.0),
            Claim("speed", "gpt127", "Hugging Face GPT-2", 1.5, 2.0),
        ),
    )


def _compiled_decoding(scale: Scale, device: str) -> Comparison:
    fast = {"prompt": scale.prompt, "n_new": scale.n_new, "device": device, "precision": "bf16"}
    models = {"gpt127": scale.gpt127, "gpt303": scale.gpt303}

    def entry(name: str, compiled: bool) -> Entry:
        arguments = fast | {"config": models[name], "compiled": compiled}
        return Entry(f"{name}, compiled" if compiled else name, "peers.ours.decoding", arguments)

    return Comparison(
        "decoding-compiled",
        "The same, one row, with the step compiled, which takes up to a minute before the first token.",
        tuple(entry(name, compiled) for name in models for compiled in (True, False)),
        baseline="gpt127",
        limit="read_bandwidth",
        rounds=5,
        claims=(
            *(Claim("speed", f"{name}, compiled", name) for name in models),
            *(Claim("share", f"{name}, compiled") for name in models),
        ),
    )


def _peers(scale: Scale, device: str) -> Comparison:
    sizes = scale.batch, scale.context, device
    bf16: dict[str, Any] = {"precision": "bf16"}
    return Comparison(
        "training-peers",
        f"Training steps of {sizes[0]} × {sizes[1]} tokens beside other projects, {AUTOCAST}; litgpt's weights are all "
        "bfloat16. The original's method runs eager, as it did.",
        (
            _entry("ours", "ours", scale.gpt127, *sizes, **bf16),
            _entry("original", "original", scale.gpt127, *sizes, **bf16),
            _entry(HUGGING_FACE, "huggingface", scale.gpt2_small, *sizes, **bf16, compiled=True),
            _entry(LITGPT, "lightning_gpt", scale.gpt2_small, *sizes, compiled=True),
            _entry("ours, bf16 weights", "ours", scale.gpt127, *sizes, precision="bf16_weights"),
        ),
        baseline="original",
        limit="gemm_bf16",
        rounds=7,
        claims=(
            Claim("speed", "ours", "original", 1.6, 1.9),
            Claim("speed", "ours", HUGGING_FACE),
            Claim("speed", "ours", LITGPT, 1.1, 1.3),
            Claim("speed", "ours, bf16 weights", "ours"),
            Claim("memory", "ours", "original", 0.65, 0.55),
        ),
    )


def _shapes(scale: Scale, device: str) -> Comparison:
    batch, context = scale.batch, scale.context
    names = f"gpt127 at {context}", f"gpt2_small at {context}", f"gpt2_small at {2 * context}"
    return Comparison(
        "shapes",
        f"GPT* and GPT-2 in one implementation, ours: training steps of {batch * context:,} tokens, {AUTOCAST}.",
        (
            _entry(names[0], "ours", scale.gpt127, batch, context, device, precision="bf16"),
            _entry(names[1], "ours", scale.gpt2_small, batch, context, device, precision="bf16"),
            _entry(names[2], "ours", scale.gpt2_small, batch // 2, 2 * context, device, precision="bf16"),
        ),
        baseline=names[2],
        limit="gemm_bf16",
        rounds=7,
        claims=tuple(Claim("speed", names[0], other) for other in names[1:]),
    )


def _batches(scale: Scale, device: str) -> Comparison:
    models = {"gpt127": (scale.gpt127, scale.batch), "gpt303": (scale.gpt303, scale.gpt303_batch)}
    pairs = {name: (f"{name}, {batch}", f"{name}, {scale.large_batch}") for name, (_, batch) in models.items()}

    def entries(name: str) -> tuple[Entry, ...]:
        config, batch = models[name]
        return tuple(
            _entry(label, "ours", config, size, scale.context, device, precision="bf16")
            for label, size in zip(pairs[name], (batch, scale.large_batch), strict=True)
        )

    return Comparison(
        "training-batch",
        f"What larger batches win: the same training steps by the number of sequences of {scale.context} tokens.",
        (*entries("gpt303"), *entries("gpt127")),
        baseline=pairs["gpt127"][0],
        limit="gemm_bf16",
        rounds=5,
        claims=tuple(Claim("speed", large, small) for small, large in pairs.values()),
    )


def prefill(scale: Scale, device: str) -> Comparison:
    """Compare the reading of a prompt."""
    step = {"precision": "bf16", "prompt": scale.prefill, "device": device}
    return Comparison(
        "prefill",
        f"A prompt of {scale.prefill:,} tokens read into a cache, with the last token's logits; bfloat16 weights.",
        (
            Entry("ours", "peers.ours.prefill", step | {"config": scale.gpt127}),
            Entry("Hugging Face GPT-2", "peers.huggingface.prefill", step | {"config": scale.gpt2_small}),
        ),
        baseline="Hugging Face GPT-2",
        limit="gemm_bf16",
        rounds=7,
        claims=(Claim("speed", "ours", "Hugging Face GPT-2", 1.25, 1.5),),
    )
