"""Everything that `make bench` compares on a CPU; `gpu_comparisons` has what a GPU compares."""

from dataclasses import replace
from typing import Any

from gptstar.model import GPTConfig
from speed.comparison import Claim, Comparison, Entry
from speed.gpu_comparisons import gpu_comparisons, prefill
from speed.scale import Scale


def comparisons(device: str, scale: Scale) -> tuple[Comparison, ...]:
    """All comparisons of a device, in the order in which they run."""
    if device == "cuda":
        return gpu_comparisons(scale)
    return (
        *_training(device, scale),
        *_shapes(device, scale),
        replace(prefill(scale, device), rounds=11, quick=3),
        _decoding(device, scale),
        _loop(device, scale),
        *_long(device, scale),
    )


def _training(device: str, scale: Scale) -> tuple[Comparison, ...]:
    step: dict[str, Any] = {"batch": scale.batch, "context": scale.context, "device": device}
    star, gpt2 = step | {"config": scale.gpt127}, step | {"config": scale.gpt2_small}
    bf16, float32 = {"precision": "bf16"}, {"precision": "float32"}
    ours = Entry("ours", "peers.ours.training", star | bf16, keeps_memory=True)
    copied = replace(ours, name="ours, bf16 weights", arguments=star | {"precision": "bf16_weights"})
    original = Entry("original", "peers.original.training", star | bf16)
    hugging = Entry("Hugging Face GPT-2", "peers.huggingface.training", gpt2 | bf16)
    plain = Entry("nanoGPT-shaped", "peers.nanogpt.training", gpt2 | bf16)
    compiled = Entry("nanoGPT-shaped, compiled", plain.build, plain.arguments | {"compiled": True})  # type: ignore[operator]
    lit = Entry("litgpt pythia-160m", "peers.lightning_gpt.training", gpt2)
    what = f"Forward, backward and AdamW on {scale.batch} × {scale.context} tokens"
    recomputed = replace(ours, name="ours, activations recomputed", arguments={**ours.arguments, "checkpointing": True})
    large = (ours, recomputed, original, hugging, plain)
    faster = (
        Claim("speed", "ours", "original", 1.6, 1.9),
        Claim("speed", "ours", "nanoGPT-shaped", 1.5, 1.6),
        Claim("speed", "ours", "Hugging Face GPT-2", 1.6, 1.75),
        Claim("speed", "ours", "litgpt pythia-160m", 1.25, 1.4),
    )
    return (
        Comparison(
            "training",
            f"{what}, bfloat16 products: by autocast over float32 weights; litgpt's weights are "
            "all bfloat16, and so is a copy of ours beside a float32 master. All keep freed memory, which of "
            "these only a run of ours does by itself.",
            _keeping(ours, copied, original, hugging, plain, lit),
            baseline="original",
            limit="gemm_bf16",
            rounds=11,
            quick=3,
            claims=(
                *faster,
                Claim("share", "ours", None, 0.65, 0.75),
                Claim("memory", "ours", "original", 0.65, 0.55),
                Claim("speed", copied.name, "original"),
                Claim("share", copied.name),
                Claim("memory", copied.name, "original"),
            ),
        ),
        Comparison(
            "training-as-run",
            "The same steps as run by each project: ours keeps freed memory, others give it back to the kernel.",
            (ours, original, hugging, plain, lit),
            baseline="original",
            limit="gemm_bf16",
            rounds=11,
            claims=faster,
        ),
        Comparison(
            "training-compiled",
            "The same beside `torch.compile`, and all keep freed memory; the time to compile does not count.",
            _keeping(ours, compiled),
            baseline="nanoGPT-shaped, compiled",
            limit="gemm_bf16",
            rounds=7,
            claims=(Claim("speed", "ours", compiled.name, 1.25, 1.4),),
        ),
        Comparison(
            "training-memory",
            f"The same as run, {scale.large_batch} sequences, each entry a process of its own, one after the other. "
            "Weights, gradients and AdamW's two moments in float32 are 16 bytes a parameter, 2.0 GB, whoever trains; "
            "the larger the batch, the more the way of computing counts.",
            tuple(replace(each, arguments={**each.arguments, "batch": scale.large_batch}) for each in large),
            baseline="original",
            limit="gemm_bf16",
            rounds=2,
            fresh=True,
            claims=tuple(
                Claim("memory", each.name, "original", *((0.65, 0.55) if each is ours else ()))
                for each in (ours, recomputed)
            ),
        ),
        Comparison(
            "training-float32",
            f"{what}, all in float32, and all keep freed memory.",
            _keeping(*(replace(each, arguments={**each.arguments, **float32}) for each in (ours, original, hugging))),
            baseline="original",
            limit="gemm_float32",
            rounds=5,
            claims=(Claim("speed", "ours", "original", 1.2, 1.25), Claim("share", "ours", None, 0.9, 0.95)),
        ),
    )


def _keeping(*entries: Entry) -> tuple[Entry, ...]:
    """The same with an allocator set as a training run of ours sets it, so that only the models differ."""
    return tuple(replace(each, keeps_memory=True) for each in entries)


def _shapes(device: str, scale: Scale) -> tuple[Comparison, ...]:
    tokens = scale.batch * scale.context
    star = scale.gpt127

    def entry(name: str, config: GPTConfig, context: int, precision: str = "bf16") -> Entry:
        arguments = {"config": config, "batch": tokens // context, "context": context, "precision": precision}
        return Entry(name, "peers.ours.training", arguments | {"device": device}, keeps_memory=True)

    narrow, deep = 2 * star.n_heads, 2 * star.n_layers
    width = star.d_model * 3 // 4  # about the same parameters at twice the depth, with the embedding's
    variants = {
        "sequential residual": replace(star, residual="sequential"),
        f"{narrow} narrow heads": replace(star, n_heads=narrow),
        f"{deep} layers of {width}": replace(star, n_layers=deep, d_model=width, n_heads=star.n_heads * 3 // 4),
    }
    pair = f"gpt127 at {scale.context}", f"gpt2_small at {2 * scale.context}"
    return (
        Comparison(
            "shapes",
            f"The claim that GPT* began with, in one implementation, ours: training steps of {tokens:,} tokens, "
            f"bfloat16 by autocast. Below the first two, gpt127 with one thing changed, at {scale.context}.",
            (
                entry(pair[0], star, scale.context),
                entry(pair[1], scale.gpt2_small, 2 * scale.context),
                *(entry(name, config, scale.context) for name, config in variants.items()),
            ),
            baseline=pair[1],
            limit="gemm_bf16",
            rounds=7,
            claims=tuple(Claim("speed", pair[0], other) for other in (pair[1], *variants)),
        ),
        Comparison(
            "shapes-float32",
            f"The same in float32, {tokens:,} tokens a training step.",
            (
                entry(pair[0], star, scale.context, "float32"),
                entry(pair[1], scale.gpt2_small, 2 * scale.context, "float32"),
            ),
            baseline=pair[1],
            limit="gemm_float32",
            rounds=5,
            claims=(Claim("speed", *pair),),
        ),
    )


def _decoding(device: str, scale: Scale) -> Comparison:
    fast = {"prompt": scale.prompt, "n_new": scale.n_new, "device": device}
    star, gpt2 = fast | {"config": scale.gpt127}, fast | {"config": scale.gpt2_small}
    slow = star | {"n_new": scale.slow_new}
    rows = f"ours bf16, {scale.rows} rows"
    return Comparison(
        "decoding",
        f"The likeliest token at a time after a prompt of {scale.prompt} tokens; one row where nothing else is said.",
        (
            Entry("ours bf16", "peers.ours.decoding", star | {"precision": "bf16"}),
            Entry(rows, "peers.ours.decoding", star | {"precision": "bf16", "batch": scale.rows}),
            Entry("ours int8", "peers.ours.decoding", star | {"precision": "int8"}),
            Entry("ours float32", "peers.ours.decoding", star | {"precision": "float32"}),
            Entry("Hugging Face GPT-2 bf16", "peers.huggingface.decoding", gpt2 | {"precision": "bf16"}),
            Entry("Hugging Face GPT-2 float32", "peers.huggingface.decoding", gpt2 | {"precision": "float32"}),
            Entry("original bf16, no cache", "peers.original.decoding", slow | {"precision": "bf16"}),
        ),
        baseline="Hugging Face GPT-2 bf16",
        limit="read_bandwidth",
        rounds=9,
        quick=3,
        claims=(
            Claim("speed", "ours bf16", "Hugging Face GPT-2 bf16", 1.5, 2.0),
            Claim("share", "ours bf16", None, 0.25, 0.4),
            Claim("speed", "ours int8", "Hugging Face GPT-2 bf16", 4.0, 6.0),
            Claim("speed", rows, "ours bf16", 4.0),
            Claim("speed", "ours float32", "Hugging Face GPT-2 float32"),
            Claim("speed", "ours bf16", "original bf16, no cache"),
        ),
    )


def _loop(device: str, scale: Scale) -> Comparison:
    overrides = (*scale.loop, f"log_every={scale.loop_steps}")
    arguments = {"overrides": overrides, "steps": scale.loop_steps, "device": device}
    return Comparison(
        "loop",
        "A run as `train.py` runs it, with loader, metrics, log and progress, and its bare steps: as many "
        "micro-batches, of random tokens, with the same accumulation, clipping and optimizer. A small model and short "
        "steps, so that what is beside them weighs more.",
        _keeping(Entry("train.py", "loop.run", arguments), Entry("bare steps", "loop.bare", arguments)),
        baseline="bare steps",
        limit="gemm_bf16",
        rounds=15,
        quick=5,
        claims=(Claim("speed", "train.py", "bare steps", 0.97),),
    )


def _long(device: str, scale: Scale) -> tuple[Comparison, ...]:
    first, far = scale.lengths[0], scale.far

    def reading(who: str, precision: str, length: int) -> Entry:
        arguments = {"config": scale.gpt303, "precision": precision, "length": length, "device": device}
        limit = scale.address_space if who == "original" else None
        return Entry(f"{who}, {length:,}", f"peers.{who}.reading", arguments, who, limit)

    ours = {precision: [reading("ours", precision, n) for n in scale.lengths] for precision in ("bf16", "float32")}
    theirs = [reading("original", "bf16", n) for n in scale.lengths if n <= scale.original_length]
    claims = (
        Claim("token", f"ours, {far:,}", f"ours, {first:,}", 1.8, 1.5),
        Claim("growth", "ours", None, 1.1, 1.0),
    )
    what = "The loss of one window at gpt303's shape, by its length, each in a process of its own"
    room = f", which may map {scale.address_space / 1e9:.0f} GB in the original's way" if scale.address_space else ""
    return (
        Comparison(
            "long",
            f"{what}{room}; bfloat16 by autocast.",
            (*ours["bf16"], *theirs),
            baseline=f"ours, {first:,}",
            limit="gemm_bf16",
            rounds=3,
            fresh=True,
            claims=claims,
        ),
        Comparison(
            "long-float32",
            f"{what}; float32.",
            tuple(ours["float32"]),
            baseline=f"ours, {first:,}",
            limit="gemm_float32",
            rounds=2,
            fresh=True,
            claims=claims,
        ),
    )
