"""What holds for every kind of positions that adds to scores, rotates or embeds: built in, or a user's own."""

import copy

import pytest
import torch

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.huggingface.export import export
from gptstar.checkpoint.read import read
from gptstar.inference.decode import decode
from gptstar.inference.packed import packed
from gptstar.inference.rows import Rows
from gptstar.inference.static_rows import StaticRows
from gptstar.model import GPTConfig
from gptstar.model.kernels import bias as bias_kernel
from gptstar.model.positions import T5, Fire, Fox, Kerple, LogAlibi, Positions, PRope, Sinusoidal
from gptstar.model.view import Cache, View
from gptstar.training.optimizers.base import decays
from own_positions import ForgetfulPositions, TablePositions
from support.graph import assert_alike, batch, trained
from support.layers import assert_branches_are_whole_sequences
from support.positions import EVERY_FOLDER, SIZES, build, greedily, trained_and_read_again

BUILT_IN: list[Positions] = [Sinusoidal(), T5(), Kerple(), Fire(7), LogAlibi(), PRope(0.5), Fox()]
KINDS: list[Positions] = [*BUILT_IN, TablePositions(5, scale=0.5), ForgetfulPositions()]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
by_residual = pytest.mark.parametrize("residual", ["parallel", "sequential"])


@by_kind
def test_positions_matter_and_are_causal(kind):
    model, tokens = build(kind), torch.randint(31, (2, 19))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(6)  # else attention is nearly uniform
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 31
    torch.testing.assert_close(model(tokens)[:, :11], model(changed)[:, :11], atol=1e-5, rtol=1e-5)
    swapped = tokens[:, [*range(14), 17, 15, 16, 14, 18]]
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-4)


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@by_kind
def test_the_graph_learns_what_the_hand_written_forms_learn(kind, trains_flex_attention):
    model = build(kind, n_vocab=211)
    for arguments, forms in ((batch()[:2], ("flex",)), (batch(), ("flex", "columns", "auto"))):
        model.use()
        expected = trained(model, model, *arguments)
        for form in forms:
            model.use(attention=form, activation_checkpointing=form == "flex")
            graph = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
            assert_alike(trained(graph, model, *arguments), expected, int((arguments[1] >= 0).sum()))
            torch._dynamo.reset()


@by_kind
def test_branches_that_share_a_beginning_have_the_logits_of_whole_sequences(kind):
    assert_branches_are_whole_sequences(build(kind))


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
@pytest.mark.usefixtures("transformers_offline")
def test_an_exported_folder_carries_the_kinds_file(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    model = build(kind)
    export(Checkpoint(model.config, model.state_dict()), tmp_path / "x", context_length=40)
    code = {path.name: path.read_text() for path in (tmp_path / "x").glob("*.py")}
    file = type(kind).__module__.rpartition(".")[2]
    beside = {"log_alibi": {"alibi.py"}, "p_rope": {"rotary.py"}, "sinusoidal": {"rotary.py"}}.get(file, set())
    assert set(code) == {"base.py", f"{file}.py", *EVERY_FOLDER} | beside
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


@by_kind
def test_training_falls_reaches_every_parameter_and_is_read_again(kind, tmp_path):
    trained_and_read_again(kind, tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("kind", "n_params", "decayed"),
    [
        (Sinusoidal(), 0, set()),
        (T5(), 32 * 3, set()),
        (Kerple(), 2 * 3, set()),
        (Fire(), 2 * 32 + 33 * 3 + 2, set()),
        (LogAlibi(), 0, set()),
        (PRope(), 0, set()),
        (Fox(), 2 * (30 + 1) * 3, {f"blocks.{layer}.attention.position_parameters.gate.weight" for layer in (0, 1)}),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Positions) else "",
)
def test_parameters_are_counted_and_only_matrices_decay(kind, n_params, decayed):
    model, plain = build(kind), GPTConfig(**SIZES)
    assert model.config.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert model.config.n_params - plain.n_params == n_params
    assert model.config.training_flops(17) == plain.training_flops(17)
    of_kind = {name: decay for name, _, decay in decays(model, final_norm=True) if "position_parameters" in name}
    assert {name for name, decay in of_kind.items() if decay} == decayed
