"""A compiler sees the model as one graph from tokens to loss, which computes what the hand-written forms compute.

FlexAttention refuses to train on a CPU, though its definition in PyTorch does: without that check, a CPU traces and
computes the graph that a GPU compiles, backward pass included.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from gptstar.model import GPT, GPTConfig
from support.graph import assert_alike, batch, trained

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of torch.compile itself
    pytest.mark.usefixtures("trains_flex_attention"),
]


def build(**changes: object) -> GPT:
    torch.manual_seed(0)
    if changes.get("positions") == "learned":
        changes["n_ctx"] = 31
    return GPT(GPTConfig(**{"n_layers": 2, "d_model": 44, "n_heads": 11, "n_vocab": 211, **changes}))  # type: ignore[arg-type]


VARIANTS = [
    pytest.param({"positions": "alibi"}, "flex", "across"),
    pytest.param({"positions": "rotary", "residual": "sequential"}, "auto", "within"),
    pytest.param({"positions": "learned"}, "auto", "across"),
    *(
        pytest.param({"positions": positions, "residual": residual}, form, attention, marks=pytest.mark.slow)
        for positions in ("alibi", "rotary", "learned", "none")
        for residual in ("parallel", "sequential")
        for form in ("flex", "bias", "columns", "auto")
        for attention in ("across", "within")
    ),
]


@pytest.mark.parametrize(("variant", "form", "attention"), VARIANTS)
def test_the_graph_learns_what_the_hand_written_forms_learn(
    variant: dict[str, object], form: str, attention: str
) -> None:
    model = build(**variant)
    tokens, targets, documents = batch()
    arguments = tokens, targets, documents if attention == "within" else None
    expected = trained(model, model, *arguments)
    model.use(attention=form)  # type: ignore[arg-type]
    graph = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert_alike(trained(graph, model, *arguments), expected, int((targets >= 0).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}, {"logits_at_once": 256 * 13}])
def test_memory_saved_inside_the_graph_changes_nothing(changes: dict[str, object]) -> None:
    model = build()
    tokens, targets, documents = batch()
    expected = trained(model, model, tokens, targets, documents)
    model.use(attention="flex", **changes)  # type: ignore[arg-type]
    graph = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert_alike(trained(graph, model, tokens, targets, documents), expected, int((targets >= 0).sum()))


def traced(model: GPT, *arguments: Tensor | None) -> tuple[dict[str, torch.fx.GraphModule], Any]:
    """The forward and backward graphs that a compiler gets, and what they compute."""
    graphs: dict[str, torch.fx.GraphModule] = {}

    def take(name: str) -> Callable[[torch.fx.GraphModule, list[Tensor]], object]:
        def compiler(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> object:
            assert name not in graphs, "more than one graph"
            graphs[name] = graph
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(
        fw_compiler=take("forward"), bw_compiler=take("backward"), partition_fn=min_cut_rematerialization_partition
    )
    run = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    return graphs, trained(run, model, *arguments)


def product_sizes(graph: torch.fx.GraphModule) -> Iterator[int]:
    """The sizes of both factors of every matrix product."""
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if node.target in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            for factor in node.args[-2:]:
                yield from factor.meta["val"].shape


@pytest.mark.slow
def test_the_graph_at_gpt2s_vocabulary_is_aligned_and_keeps_its_attention() -> None:
    model = build(n_vocab=50257, d_model=16, n_heads=2)
    tokens = torch.randint(50257, (2, 129))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    documents = (torch.arange(128) > torch.tensor([[40], [17]])).long()
    expected = trained(model, model, inputs, targets, documents)
    model.use(attention="flex", activation_checkpointing=True, logits_at_once=50304 * 128)
    graphs, found = traced(model, inputs, targets, documents)
    assert_alike(found, expected, targets.numel())
    sizes = [size for graph in graphs.values() for size in product_sizes(graph)]
    assert 50304 in sizes
    assert not [size for size in sizes if size % 8]
    attention = torch.ops.higher_order.flex_attention  # computed once for each layer, not again in the backward pass
    assert [sum(node.target is attention for node in graph.graph.nodes) for graph in graphs.values()] == [2, 0]


@pytest.mark.slow
def test_whole_logits_are_aligned_too() -> None:
    model = build(n_vocab=50257, d_model=16, n_heads=2)
    model.use(attention="flex")
    tokens = torch.randint(50257, (2, 129))
    graphs, _ = traced(model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    assert not [size for graph in graphs.values() for size in product_sizes(graph) if size % 8]


def test_the_gradient_of_padded_rows_reaches_nothing() -> None:
    model = build(n_vocab=50257, d_model=16, n_heads=2)
    state = {name: tensor.shape for name, tensor in model.state_dict().items()}
    graph = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    tokens = torch.randint(50257, (1, 9))
    losses = graph(tokens[:, :-1], tokens[:, 1:])
    logits = graph(tokens[:, :-1])
    assert logits.shape == (1, 8, 50257)
    expected = torch.nn.functional.cross_entropy(logits[0], tokens[0, 1:], reduction="none")
    torch.testing.assert_close(losses[0], expected)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == state


def test_documents_of_another_batch_take_the_same_graph() -> None:
    model, compiled = build(), []
    model.use(attention="flex")

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        compiled.append(graph)
        return graph.forward

    run = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    tokens, targets, documents = batch()
    first = trained(run, model, tokens, targets, documents)
    other = trained(run, model, tokens, targets, 1 - documents.flip(1))
    assert len(compiled) == 1
    assert not torch.equal(first[0], other[0])


def test_dropout_is_part_of_the_graph() -> None:
    model = build(dropout=0.2)
    model.use(attention="auto")
    run = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    losses = [trained(run, model, *batch())[0] for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_bfloat16_learns_what_float32_learns_up_to_its_rounding(weights: torch.dtype) -> None:
    exact = build(positions="rotary")
    tokens, targets, documents = batch()
    expected = trained(exact, exact, tokens, targets, documents)
    model = build(positions="rotary").to(weights)
    model.use(attention="flex")
    run = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=weights is torch.float32):
        loss, gradients = trained(run, model, tokens, targets, documents)
    assert loss.item() == pytest.approx(expected[0].item(), rel=3e-3)
    for mine, its in zip(gradients, expected[1], strict=True):
        assert (mine.float() - its).norm() < 0.05 * its.norm()
