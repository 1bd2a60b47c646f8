"""Those whose speed is compared compute what they say."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import flex_attention

from gptstar.model import GPT
from speed.comparison import Entry
from speed.comparisons import comparisons
from speed.gpu_comparisons import gpu_comparisons
from speed.peers.nanogpt import NanoGPT
from speed.peers.original import Original
from speed.peers.prototype import Prototype, mask_of
from speed.scale import Scale
from support.comparison import ALL, GPT2, STAR, TINY

GPU = gpu_comparisons(TINY, "cpu")
ENTRIES = [
    pytest.param(entry, id=f"{device} {comparison.name}: {entry.name}")
    for device, of in (("cpu", ALL), ("gpu", GPU))
    for comparison in of
    for entry in comparison.entries
    # A run takes the main thread, and FlexAttention refuses to train on a CPU.
    if not entry.build.startswith(("loop.", "peers.prototype."))
]


def build(entry: Entry) -> Any:
    """An entry's job, in this process."""
    module, _, function = entry.build.rpartition(".")
    if "lightning_gpt" in module:
        pytest.importorskip("litgpt")
    if entry.arguments.get("precision") == "int8" and not torch.cpu._is_vnni_supported():
        pytest.skip("this CPU lacks the instructions for int8 weights")
    return getattr(__import__(f"speed.{module}", fromlist=[function]), function)(**entry.arguments)


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speed.job.LEAST_SECONDS", 0.0)


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_is_built_and_measured(
    entry: Entry, transformers_offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []  # without a compiler, which takes half a minute
    monkeypatch.setattr("torch.compile", lambda model: compiled.append(model) or model)
    monkeypatch.setattr("torch.nn.Module.compile", lambda model: compiled.append(model))
    torch.manual_seed(0)
    job = build(entry)
    assert 0 < job.round() < 10
    assert job.tokens > 0
    trains = entry.build.endswith(".training")
    is_compiled = entry.arguments.get("compiled", False)
    assert len(compiled) == (trains and is_compiled)
    assert (job.first_step > 0) == (trains or is_compiled)


def test_the_original_computes_what_ours_does() -> None:
    torch.manual_seed(0)
    theirs, ours = Original(STAR, 31), GPT(STAR)
    state = theirs.state_dict()
    mapped = {
        "token_embedding.weight": state["embedding.weight"],
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    for number in range(STAR.n_layers):
        for kind in ("weight", "bias"):
            of = lambda part, number=number, kind=kind: state[f"blocks.{number}.{part}.{kind}"]  # noqa: E731
            mapped |= {
                f"blocks.{number}.norm.{kind}": of("norm"),
                f"blocks.{number}.attention.qkv.{kind}": torch.cat(
                    [of(f"attention.{each}") for each in ("query", "key", "value")]
                ),
                f"blocks.{number}.attention.out.{kind}": of("attention.out"),
                f"blocks.{number}.mlp.up.{kind}": of("up"),
                f"blocks.{number}.mlp.down.{kind}": of("down"),
            }
    ours.load_state_dict(mapped)
    tokens = torch.randint(101, (3, 31))
    torch.testing.assert_close(theirs(tokens), ours(tokens), rtol=1e-4, atol=1e-5)


def test_the_plain_gpt2_computes_what_ours_does() -> None:
    torch.manual_seed(0)
    theirs, ours = NanoGPT(GPT2), GPT(GPT2)
    assert theirs.tokens.weight.shape == (128, 16)  # 103 to a multiple of 64
    state = {"token_embedding.weight": theirs.tokens.weight[:103], "position_embedding.weight": theirs.positions.weight}
    for number, block in enumerate(theirs.blocks):
        parts: dict[str, nn.Module] = {
            "attention_norm": block.attention_norm,
            "mlp_norm": block.mlp_norm,
            "attention.qkv": block.qkv,
            "attention.out": block.out,
            "mlp.up": block.mlp[0],
            "mlp.down": block.mlp[2],
        }
        state |= {f"blocks.{number}.{name}.weight": part.weight for name, part in parts.items()}
    state["norm.weight"] = theirs.norm.weight
    ours.load_state_dict({name: torch.zeros_like(value) for name, value in ours.state_dict().items()} | state)
    tokens = torch.randint(103, (3, 29))
    logits, _ = theirs(tokens, tokens)
    torch.testing.assert_close(logits[..., :103], ours(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_the_prototype_trains_as_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    compiler = torch.compile
    monkeypatch.setattr("torch.compile", lambda model: compiler(model, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    job = build(GPU[0].entries[1])
    assert job.first_step > 0
    assert 0 < job.round() < 10
    assert job.flops == STAR.training_flops(31)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_prototype_computes_what_ours_does() -> None:
    torch.manual_seed(0)
    theirs, ours = Prototype(STAR), GPT(STAR)
    assert theirs.embedding.num_embeddings == 128  # 101, padded
    nn.init.normal_(theirs.norms[1].bias)
    mapped = {"token_embedding.weight": theirs.embedding.weight[:101]}
    norms = ["blocks.0.norm", "blocks.1.norm", "norm"]
    parts = dict(zip(norms, theirs.norms, strict=True))
    for number in range(2):
        for name, layers in (("attention.qkv", theirs.qkv), ("attention.out", theirs.out), ("mlp.up", theirs.up)):
            parts[f"blocks.{number}.{name}"] = layers[number]
        parts[f"blocks.{number}.mlp.down"] = theirs.down[number]
    for name, part in parts.items():
        mapped |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    ours.load_state_dict(mapped)
    tokens = torch.randint(101, (3, 31))
    with torch.no_grad():
        logits = theirs.logits(tokens, mask_of(31, "cpu"))
        torch.testing.assert_close(logits[..., :101], ours(tokens), rtol=1e-4, atol=1e-5)
        loss = theirs(tokens[:, :-1], tokens[:, 1:], mask_of(30, "cpu"))
        of_all = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        torch.testing.assert_close(loss, of_all)


def test_the_shapes_that_are_compared_are_the_published_ones() -> None:
    scale = Scale.of("cpu")
    assert (scale.gpt127.n_params, scale.gpt303.n_params, scale.gpt2_small.n_params) == (
        127_030_272,
        303_825_408,
        124_439_808,
    )
    assert 0.99 < scale.gpt2_304m.n_params / scale.gpt303.n_params < 1.01
    (shapes,) = (each for each in comparisons("cpu", scale) if each.name == "shapes")
    sizes = {entry.name: entry.arguments["config"].n_params / 127_030_272 for entry in shapes.entries}
    assert all(0.97 < size < 1.01 for size in sizes.values()), sizes
    tokens = {entry.arguments["batch"] * entry.arguments["context"] for entry in shapes.entries}
    assert tokens == {1024}


def test_operations_are_counted_by_one_formula() -> None:
    flops = {entry.name: build(entry).flops for entry in ALL[0].entries[:2] + ALL[4].entries[:1]}
    assert set(flops.values()) == {STAR.training_flops(31)}
