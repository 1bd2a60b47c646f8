"""A user's own kinds of positions: no file of the package names them, and everything works with them."""

import copy

import pytest
import torch

from gptstar.checkpoint.format import Checkpoint, write
from gptstar.checkpoint.huggingface.export import export
from gptstar.checkpoint.huggingface.standalone import standalone
from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.errors import CheckpointError, ConfigError
from gptstar.inference.decode import decode
from gptstar.inference.packed import packed
from gptstar.inference.rows import Rows
from gptstar.inference.static_rows import StaticRows
from gptstar.model import GPT, GPTConfig
from gptstar.model.attention import causal_attention
from gptstar.model.kernels import bias as bias_kernel
from gptstar.model.positions import POSITIONS, Alibi, Positions
from gptstar.model.view import Cache, View
from gptstar.training.settings import settings_of
from own_positions import ForgetfulPositions, TablePositions
from support.attention import reference_attention
from support.graph import assert_alike, batch, trained

SIZES = {"n_layers": 2, "d_model": 30, "n_heads": 3, "n_vocab": 31, "d_head": 14, "d_ff": 62}
KINDS: list[Positions] = [TablePositions(5, scale=0.5), ForgetfulPositions()]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
by_residual = pytest.mark.parametrize("residual", ["parallel", "sequential"])


def build(kind: Positions, **changes: object) -> GPT:
    torch.manual_seed(5)
    model = GPT(GPTConfig(**{**SIZES, **changes}, positions=kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_parameters" in name:
                parameter.add_(torch.randn_like(parameter))
    return model


@by_kind
def test_positions_matter_and_are_causal(kind):
    model, tokens = build(kind), torch.randint(31, (2, 19))
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 31
    torch.testing.assert_close(model(tokens)[:, :11], model(changed)[:, :11], atol=1e-6, rtol=1e-5)
    swapped = tokens[:, [*range(14), 17, 15, 16, 14, 18]]
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-4)


@by_kind
def test_parameters_are_counted_named_and_kept_out_of_the_products(kind):
    model = build(kind)
    config, plain = model.config, GPTConfig(**SIZES)
    assert config.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert config.training_flops(17) == plain.training_flops(17)
    names = set(model.state_dict()) - set(GPT(plain).state_dict())
    table = {"position_parameters.table"}
    gates = {
        f"blocks.{layer}.attention.position_parameters.gate.{leaf}" for layer in (0, 1) for leaf in ("weight", "bias")
    }
    assert names == (gates if kind.per_layer else table)
    assert config.n_params - plain.n_params == (2 * (30 + 1) * 3 if kind.per_layer else 6 * 3)


def test_a_kind_draws_its_parameters_or_leaves_that_to_the_model():
    torch.manual_seed(0)
    table = GPT(GPTConfig(**SIZES, positions=TablePositions(300))).position_parameters.table
    assert table.abs().max() > 1.9
    gate = GPT(GPTConfig(**SIZES, positions=ForgetfulPositions())).blocks[1].attention.position_parameters.gate
    assert gate.weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert not gate.bias.any()


def test_a_bias_of_pairs_agrees_with_the_reference(monkeypatch):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 37, 7)
    kind, table = TablePositions(11), build(TablePositions(11)).position_parameters
    bias = lambda pairs: kind.bias(pairs, 3, table, None)  # noqa: E731
    distance = torch.arange(37)[:, None] - torch.arange(37)
    whole = table.table[distance.clamp(0, 11)].permute(2, 0, 1).masked_fill(distance < 0, -torch.inf)
    documents = (torch.arange(37) > torch.tensor([[9], [20]])).long()
    apart = whole.masked_fill((documents[:, :, None] != documents[:, None])[:, None], -torch.inf)
    monkeypatch.setattr(bias_kernel, "QUERY_BLOCK", 16)
    for given, expected_bias in ((None, whole), (documents, apart)):
        found = causal_attention(query, key, value, bias, documents=given)
        torch.testing.assert_close(found, reference_attention(query, key, value, expected_bias), atol=1e-5, rtol=1e-5)
    gradients = []
    for mixed in (found, reference_attention(query, key, value, apart)):
        table.zero_grad()
        mixed.square().sum().backward()
        gradients.append(table.table.grad.clone())
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


@by_kind
@by_residual
def test_a_packed_document_is_read_as_if_it_were_alone(kind, residual, monkeypatch):
    monkeypatch.setattr(bias_kernel, "QUERY_BLOCK", 16)
    model, tokens = build(kind, residual=residual), torch.randint(31, (2, 39))
    documents = torch.cat((torch.repeat_interleave(torch.tensor([13, 1, 23, 2]))[None], torch.zeros(1, 39).long()))
    packed_logits = model(tokens, documents=documents)
    torch.testing.assert_close(packed_logits[1], model(tokens)[1], atol=1e-5, rtol=1e-5)
    for start, stop in ((0, 13), (13, 14), (14, 37), (37, 39)):
        alone = model(tokens[:1, start:stop])
        torch.testing.assert_close(packed_logits[:1, start:stop], alone, atol=1e-5, rtol=1e-5)


@by_kind
def test_the_graph_learns_what_the_hand_written_forms_learn(kind, trains_flex_attention):
    model = build(kind, n_vocab=211)
    for arguments, forms in ((batch()[:2], ("flex",)), (batch(), ("flex", "columns", "auto"))):
        expected = trained(model, model, *arguments)
        for form in forms:
            model.use(attention=form, activation_checkpointing=form == "flex")
            graph = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
            assert_alike(trained(graph, model, *arguments), expected, int((arguments[1] >= 0).sum()))
            torch._dynamo.reset()


@by_kind
def test_branches_that_share_a_beginning_have_the_logits_of_whole_sequences(kind):
    model = build(kind)
    nodes = torch.randint(31, (16,))
    at = torch.tensor([*range(5), *range(5, 9), *range(5, 12)])
    branch = torch.tensor([0] * 5 + [1] * 4 + [2] * 7)
    mask = (at[:, None] >= at) & ((branch == 0) | (branch[:, None] == branch))
    with torch.inference_mode():
        together = model.logits(model.hidden(nodes[None], View(at[None], at[None], mask[None])))[0]
        second = model(torch.cat((nodes[:5], nodes[9:]))[None])[0]
        torch.testing.assert_close(together[:9], model(nodes[None, :9])[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.cat((together[:5], together[9:])), second, atol=1e-5, rtol=1e-5)
        few = torch.tensor([[15, 3]])
        found = model.hidden(nodes[None], View(at[None], at[None], mask[None]), few)
        torch.testing.assert_close(model.logits(found)[0], together[few[0]], atol=1e-5, rtol=1e-5)


@by_kind
def test_text_read_in_pieces_through_a_cache_has_the_logits_of_the_whole(kind):
    model, tokens = build(kind), torch.randint(31, (3, 11))
    cache, pieces = Cache(dtype=torch.float32), []
    with torch.inference_mode():
        for start, stop in ((0, 1), (1, 2), (2, 6), (6, 7), (7, 11)):
            at = torch.arange(stop)[None]
            pieces.append(model.logits(model.hidden(tokens[:, start:stop], View(at[:, start:], at, cache=cache))))
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-5, rtol=1e-5)


@by_kind
def test_a_bfloat16_model_reads_a_prompt_into_a_float32_cache(kind):
    model, tokens = build(kind).bfloat16(), torch.randint(31, (3, 11))
    cache, at = Cache(11, torch.float32), torch.arange(11)[None]
    with torch.inference_mode():
        found = model.hidden(tokens, View(at, at, cache=cache))
        assert torch.equal(found, model.hidden(tokens))
        last = model.hidden(tokens[:, :1], View(at[:, :1] + 11, torch.arange(12)[None], cache=cache))
    assert last.dtype is torch.bfloat16
    assert last.isfinite().all()


def greedily(model: GPT, prompt: list[int], n_new: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(n_new):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


@by_kind
@by_residual
def test_prompts_of_several_lengths_are_continued_as_by_whole_forwards(kind, residual, monkeypatch):
    model, prompts = build(kind, residual=residual), [[3, 1, 4, 1, 5, 9, 2], [6, 5], [3, 5, 8, 9]]
    with torch.inference_mode():
        expected = [greedily(model, prompt, 9) for prompt in prompts]
        forms = (model, packed(copy.deepcopy(model)))
        for rows in (Rows, StaticRows):
            monkeypatch.setattr("gptstar.inference.decode.Rows", rows)
            for form in forms:
                assert decode(form, prompts, 9) == expected


@by_kind
def test_two_steps_a_checkpoint_and_the_same_model_again(kind, tmp_path, monkeypatch):
    model, tokens = build(kind).train(), torch.randint(31, (4, 12))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:], reduction="sum") / 44
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    write(tmp_path / "x.ckpt", Checkpoint(model.config, model.state_dict()))
    again = read(tmp_path / "x.ckpt")
    assert again.model == model.config
    assert again.model.as_dict()["positions"]["plugin"] == "own_positions"
    assert torch.equal(again.build()(tokens), model.eval()(tokens))
    monkeypatch.delitem(POSITIONS._classes, POSITIONS.name_of(kind))
    with pytest.raises(CheckpointError, match=r"is not known: .*add plugins=\[own_positions\]$") as refused:
        read(tmp_path / "x.ckpt")
    assert "\n" not in str(refused.value)


@by_kind
@pytest.mark.usefixtures("transformers_offline")
def test_an_exported_folder_carries_the_kinds_file(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    model = build(kind)
    export(Checkpoint(model.config, model.state_dict()), tmp_path / "x", context_length=40)
    code = {path.name: path.read_text() for path in (tmp_path / "x").glob("*.py")}
    assert set(code) == {"base.py", "modeling_gptstar.py", "own_positions.py"}
    assert not [name for name, text in code.items() if "import gptstar" in text or "from gptstar" in text]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "x", trust_remote_code=True).eval()
    tokens, mask = torch.randint(1, 31, (2, 17)), torch.ones(2, 17, dtype=torch.int64)
    mask[1, :6] = 0
    with torch.inference_mode():
        found = theirs(tokens, attention_mask=mask).logits
        torch.testing.assert_close(found[0], model(tokens[:1])[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[1, 6:], model(tokens[1:, 6:])[0], atol=1e-5, rtol=1e-5)
        for use_cache in (True, False):
            options = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
            texts = theirs.generate(tokens, attention_mask=mask, **options)
            assert texts[1, 17:].tolist() == greedily(model, tokens[1, 6:].tolist(), 7)
    assert read(tmp_path / "x").model == model.config


KIND_IMPORT = "from gptstar.model.positions.alibi import Alibi as Kind\n"


def test_a_kind_without_a_file_is_not_exported():
    class Here(Alibi):
        __module__ = "__main__"

    with pytest.raises(CheckpointError, match="Here stands in a script"):
        standalone(KIND_IMPORT, Here())


@pytest.mark.parametrize("line", ["import math, numpy", "from yaml import safe_load", "import gptstar.model.view"])
def test_a_kind_that_imports_what_others_may_lack_is_not_exported(line):
    modelling = f"import math\nfrom transformers import PreTrainedModel\n{KIND_IMPORT}"
    assert set(standalone(modelling, Alibi())) == {"modeling_gptstar.py", "alibi.py", "base.py"}
    with pytest.raises(CheckpointError, match=f"can't go into an exported folder with `{line}`: let it import torch"):
        standalone(f"{line}\n{KIND_IMPORT}", Alibi())


@pytest.mark.parametrize(
    ("given", "kind"),
    [("forgets", ForgetfulPositions()), ({"kind": "table", "reach": 4, "scale": 2}, TablePositions(4, 2.0))],
)
def test_a_name_or_a_mapping_becomes_the_kind(given, kind):
    assert GPTConfig(**SIZES, positions=given).positions == kind
    written = given if isinstance(given, str) else "{kind: table, reach: 4, scale: 2}"
    parsed = TrainConfig.parse(compose("train", [f"model.positions={written}"]))
    assert parsed.recipe.model.positions == kind
    assert settings_of(parsed.recipe, parsed.hardware).items() >= {"model.n_layers": 2}.items()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("tabel", "model.positions=tabel is not known: did you mean table?"),
        ("{kind: table}", "model.positions.reach has no value"),
        ("{kind: table, reach: 0}", "model.positions.reach=0 is below 1"),
        ("{kind: table, reech: 1}", "model.positions.reech is not a key of model.positions=table: did you mean"),
    ],
)
def test_mistakes_are_named(given, says):
    with pytest.raises(ConfigError) as refused:
        TrainConfig.parse(compose("train", [f"model.positions={given}"]))
    assert says in str(refused.value)
