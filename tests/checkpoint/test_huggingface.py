"""Exported folders in transformers, and transformers' folders here: the same logits, losses, texts and tokens."""

import ast
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptstar.checkpoint.format import Checkpoint, TrainingState
from gptstar.checkpoint.huggingface.export import export
from gptstar.checkpoint.legacy import read_legacy
from gptstar.checkpoint.read import find, load, read
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError
from gptstar.inference.generate import generate
from gptstar.inference.sampling import GREEDY, USUAL, Sampling
from gptstar.model import GPT, GPTConfig
from support.positions import EVERY_FOLDER
from support.text import sentences

pytestmark = pytest.mark.usefixtures("transformers_offline")

N_VOCAB = 300
SIZES = {"n_layers": 3, "d_model": 24, "n_vocab": N_VOCAB}
KINDS: dict[str, dict[str, Any]] = {
    "alibi": {"n_heads": 8, "d_head": 5},
    "alibi-6-heads-sequential": {"n_heads": 6, "residual": "sequential", "gelu": "tanh", "d_ff": 41},
    "rotary": {"n_heads": 3, "positions": "rotary"},
    "none": {"n_heads": 3, "positions": "none"},
    "learned-parallel": {"n_heads": 3, "positions": "learned", "n_ctx": 37},
    "gpt2": {"n_heads": 3, "positions": "learned", "n_ctx": 37, "residual": "sequential", "gelu": "tanh"},
    "gpt2-exact-gelu": {"n_heads": 3, "positions": "learned", "n_ctx": 37, "residual": "sequential", "d_ff": 50}
    | {"residual_init": "legacy", "dropout": 0.1},
}
HARD = [
    "",
    " ",
    "\n\n  \t x ",
    "naïve 漢字 😀",
    "don't  . , !",
    "a" * 1000,
    "<|endoftext|>",
    "a <|endoftext|>b",
    "\r\n\u00a0é",
]
by_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return Tokenizer.train([*sentences(60, 80, seed=1), "naïve café <|endoftext|>\n\n 漢字 "], N_VOCAB)


def build(kind: str) -> GPT:
    torch.manual_seed(11)
    model = GPT(GPTConfig(**(SIZES | KINDS[kind]))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def exported(model: GPT, bpe: Tokenizer | None, folder: Path, length: int = 37) -> Any:
    from transformers import AutoModelForCausalLM

    export(Checkpoint(model.config, model.state_dict(), bpe and bpe.json_text), folder, context_length=length)
    trust = json.loads((folder / "config.json").read_text())["model_type"] != "gpt2"
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust).eval()


@pytest.mark.core
@by_kind
def test_logits_and_loss_are_ours(kind, bpe, tmp_path):
    model = build(kind)
    theirs = exported(model, bpe, tmp_path / "x")
    assert type(theirs).__name__ == ("GPT2LMHeadModel" if kind.startswith("gpt2") else "GPTStarForCausalLM")
    tokens = torch.randint(N_VOCAB, (3, 31))
    with torch.inference_mode():
        found = theirs(tokens, labels=tokens)
        torch.testing.assert_close(found.logits, model(tokens), atol=1e-5, rtol=1e-5)
        assert found.loss.item() == pytest.approx(model(tokens[:, :-1], tokens[:, 1:]).mean().item(), abs=1e-5)


@by_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(kind, side, bpe, tmp_path):
    model = build(kind)
    theirs = exported(model, bpe, tmp_path / "x")
    rows = [torch.randint(N_VOCAB, (length,)) for length in (17, 5, 11)]
    tokens, mask = torch.zeros(3, 17, dtype=torch.int64), torch.zeros(3, 17, dtype=torch.int64)
    places = [slice(17 - len(row), 17) if side == "left" else slice(0, len(row)) for row in rows]
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        tokens[number, place], mask[number, place] = row, 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    given_positions = {"position_ids": positions} if kind.startswith("gpt2") else {}  # theirs does not count them
    with torch.inference_mode():
        logits = theirs(tokens, attention_mask=mask, **given_positions).logits
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            torch.testing.assert_close(logits[number, place], model(row[None])[0], atol=1e-5, rtol=1e-5)


@by_kind
def test_a_batch_is_continued_as_each_prompt_by_itself(kind, bpe, tmp_path):
    model = build(kind)
    theirs = exported(model, bpe, tmp_path / "x")
    tokens, mask = torch.randint(1, N_VOCAB, (2, 7)), torch.ones(2, 7, dtype=torch.int64)
    mask[0, :3] = 0  # padded on the left
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for use_cache in (True, False):
        found = theirs.generate(tokens, attention_mask=mask, use_cache=use_cache, **options)
        for number, start in enumerate((3, 0)):
            expected = tokens[number, start:]
            with torch.inference_mode():
                for _ in range(12):
                    expected = torch.cat((expected, model(expected[None])[0, -1].argmax()[None]))
            assert found[number, start:].tolist() == expected.tolist()


@by_kind
def test_a_static_cache_gives_the_same_texts(kind, bpe, tmp_path):
    theirs = exported(build(kind), bpe, tmp_path / "x", 30)
    tokens, mask = torch.tensor([[0, 0, 7, 8], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for rows in (slice(0, 2), slice(1, 2)):
        given = {"input_ids": tokens[rows], "attention_mask": mask[rows]}
        texts = [
            theirs.generate(**given, max_new_tokens=9, do_sample=False, pad_token_id=0, cache_implementation=cache)
            for cache in ("dynamic", "static")
        ]
        assert torch.equal(*texts)


@by_kind
def test_what_models_of_transformers_take_is_applied(kind, bpe, tmp_path):
    theirs, tokens = exported(build(kind), bpe, tmp_path / "x"), torch.randint(N_VOCAB, (2, 12))
    with torch.inference_mode():
        whole = theirs(tokens, output_hidden_states=True)
        assert [state.shape for state in whole.hidden_states] == [(2, 12, 24)] * 4
        torch.testing.assert_close(whole.hidden_states[-1] @ theirs.get_input_embeddings().weight.T, whole.logits)
        as_tuple = theirs(tokens, labels=tokens, return_dict=False, use_cache=False)
        assert torch.equal(as_tuple[1], whole.logits)
        # Two texts in a row, by their positions or by a mask, are read as each by itself.
        at, second = (torch.arange(12) % 7)[None].expand(2, -1), torch.arange(12) >= 7
        causal = torch.ones(12, 12).tril().bool() & (second[:, None] == second)
        parts = torch.cat([theirs(tokens[:, :7]).logits, theirs(tokens[:, 7:]).logits], dim=1)
        additive = torch.zeros(12, 12).masked_fill(~causal, torch.finfo(torch.float32).min)
        for mask in (causal, additive):
            masked = theirs(tokens, position_ids=at, attention_mask=mask[None, None].expand(2, 1, -1, -1))
            torch.testing.assert_close(masked.logits, parts, rtol=1e-4, atol=1e-5)


def test_positions_and_arguments_of_ours_are_applied_or_refused(bpe, tmp_path):
    theirs, tokens = exported(build("rotary"), bpe, tmp_path / "x"), torch.randint(N_VOCAB, (2, 12))
    with torch.inference_mode():
        both = theirs(tokens, position_ids=(torch.arange(12) % 7)[None]).logits
        parts = torch.cat([theirs(tokens[:, :7]).logits, theirs(tokens[:, 7:]).logits], dim=1)
        torch.testing.assert_close(both, parts, rtol=1e-4, atol=1e-5)
        beginning = theirs(tokens[:, :7], use_cache=True)
        positions = torch.arange(7, 12)[None]
        rest = theirs(tokens[:, 7:], past_key_values=beginning.past_key_values, position_ids=positions).logits
        torch.testing.assert_close(rest, theirs(tokens).logits[:, 7:], rtol=1e-4, atol=1e-5)
        far = theirs(tokens[:, :3], position_ids=torch.tensor([[0, 5, 50]]), attention_mask=torch.ones(2, 3)).logits
        assert not torch.allclose(far, theirs(tokens[:, :3]).logits)
        for wrong in ({"output_attentions": True}, {"head_mask": torch.ones(3)}, {"token_type_ids": tokens}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                theirs(tokens, **wrong)
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            theirs()


@by_kind
def test_gradients_are_ours_with_and_without_checkpointing(kind, bpe, tmp_path):
    model = build(kind)
    model.zero_grad()
    theirs = exported(model, bpe, tmp_path / "x").train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens = torch.randint(N_VOCAB, (2, 23))
    model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    expected = model.token_embedding.weight.grad
    for checkpointing in (False, True):
        theirs.zero_grad()
        if checkpointing:
            newer = "activation_checkpointing_enable"
            getattr(theirs, newer if hasattr(theirs, newer) else "gradient_checkpointing_enable")()
        runs = []
        hook = next(m for name, m in theirs.named_modules() if name.endswith(("blocks.0", "h.0")))
        handle = hook.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        theirs(tokens, labels=tokens).loss.backward()
        handle.remove()
        assert len(runs) == 1 + (checkpointing and not kind.startswith("gpt2"))  # theirs calls it past its hooks
        torch.testing.assert_close(theirs.get_input_embeddings().weight.grad, expected, atol=1e-6, rtol=1e-4)


@by_kind
def test_what_was_exported_comes_back(kind, bpe, tmp_path):
    model = build(kind)
    exported(model, bpe, tmp_path / "x")
    assert find(tmp_path / "x") == tmp_path / "x"
    back = read(tmp_path / "x")
    assert back.model.as_dict() == model.config.as_dict()
    assert back.tokenizer is not None
    assert Tokenizer(back.tokenizer).fingerprint == bpe.fingerprint
    assert back.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_a_gpt2_of_transformers_is_read(prefixed, shard_size, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=61, n_positions=29, n_embd=20, n_layer=2, n_head=4)
    theirs = GPT2LMHeadModel(config).eval()
    saved: Any = theirs if prefixed else GPT2Model(config)
    if not prefixed:
        saved.load_state_dict(theirs.transformer.state_dict())
    saved.save_pretrained(tmp_path / "x", max_shard_size=shard_size)
    assert (len(list((tmp_path / "x").glob("*.safetensors"))) > 1) == (shard_size == "20KB")
    tokens = torch.randint(61, (2, 29))
    with torch.inference_mode():
        torch.testing.assert_close(load(tmp_path / "x")(tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["alibi-parallel-0", "alibi-parallel-full-1"])
def test_the_original_weights_give_the_original_logits(name, shared, tmp_path):
    expected = torch.load(shared / f"legacy/{name}.expected.pt", weights_only=False)
    model = read_legacy(shared / f"legacy/{name}.pth.tar").build()
    theirs = exported(model, None, tmp_path / "x")
    with torch.inference_mode():
        found = theirs(expected["tokens"]).logits
    torch.testing.assert_close(found, expected["logits"], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="session", params=["alibi", "gpt2"])
def fast(request: pytest.FixtureRequest, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokens") / "x"
    exported(build(request.param), bpe, folder)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.text(), st.sampled_from(HARD))).map("".join))
def test_tokens_are_ours(bpe, fast, text):
    tokens = bpe.encode([text])[0].tolist()
    assert fast(text)["input_ids"] == tokens
    assert fast.decode(tokens) == bpe.decode(tokens)


@pytest.mark.parametrize("text", HARD)
def test_tokens_of_hard_text_are_ours(text, bpe, fast):
    assert fast(text)["input_ids"] == fast.encode(text, add_special_tokens=False) == bpe.encode([text])[0].tolist()


def test_the_tokenizer_has_our_tokens_and_no_others(bpe, fast):
    assert (len(fast), fast.all_special_tokens) == (N_VOCAB, ["<|endoftext|>"])
    assert (fast.bos_token_id, fast.eos_token_id, fast.model_max_length) == (bpe.end_of_text, bpe.end_of_text, 37)


def test_no_token_is_added_to_a_text(bpe, tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    backend = Backend.from_str(bpe.json_text)
    end = ("<|endoftext|>", bpe.end_of_text)
    backend.post_processor = TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    assert backend.encode("abc").ids[0] == bpe.end_of_text
    exported(build("alibi"), Tokenizer(backend.to_str()), tmp_path / "x")
    fast = AutoTokenizer.from_pretrained(tmp_path / "x", trust_remote_code=False)
    assert fast("abc")["input_ids"] == bpe.encode(["abc"])[0].tolist()
    back = read(tmp_path / "x").tokenizer
    assert back is not None
    assert Tokenizer(back).fingerprint == bpe.fingerprint


@pytest.mark.parametrize("kind", ["alibi", "gpt2"])
def test_what_transformers_saves_again_comes_back(kind, bpe, tmp_path):
    model = build(kind)
    exported(model, bpe, tmp_path / "x").bfloat16().save_pretrained(tmp_path / "y")
    back = read(tmp_path / "y")
    assert back.model.as_dict() == model.config.as_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.weights[name], tensor.bfloat16().float())


def test_the_training_is_told(bpe, tmp_path):
    model = build("gpt2")
    settings = {"data.context_length": 19, "batch_tokens": 380, "seed": 0}
    training = TrainingState(7, 7, 1.5, settings, data={}, optimizer={})
    checkpoint = Checkpoint(model.config, model.state_dict(), bpe.json_text, training)
    export(checkpoint, tmp_path / "x", context_length=37)
    config = json.loads((tmp_path / "x/config.json").read_text())
    told = {key: value for key, value in config.items() if key.startswith("trained_")}
    assert told == {"trained_context_length": 19, "trained_steps": 7, "trained_tokens": 2660}
    assert read(tmp_path / "x").training is None  # so that fine-tuning it begins at step 0


@pytest.mark.parametrize("kind", ["alibi", "gpt2"])
def test_the_harness_scores_it(kind, bpe, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = build(kind)
    exported(model, bpe, tmp_path / "x")
    lm = HFLM(pretrained=str(tmp_path / "x"), trust_remote_code=True, device="cpu", batch_size=2)
    assert (lm.max_length, lm.eot_token_id) == (37, bpe.end_of_text)
    pairs = [("the", " dog"), ("a <|endoftext|>", " b"), ("", "one two")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)])
    for (context, continuation), (score, is_greedy) in zip(pairs, found, strict=True):
        whole = bpe.encode([context + continuation])[0].tolist()
        start = len(bpe.encode([context])[0]) if context else 0
        tokens = torch.tensor([[bpe.end_of_text, *whole]] if not context else [whole])
        with torch.inference_mode():
            logits = model(tokens[:, :-1])[0, -(len(whole) - start) :]
        targets = tokens[0, -len(logits) :]
        assert score == pytest.approx(logits.log_softmax(1).gather(1, targets[:, None]).sum().item(), abs=1e-4)
        assert is_greedy == bool((logits.argmax(1) == targets).all())


@by_kind
def test_the_code_of_a_folder_stands_alone(kind, tmp_path):
    model = build(kind)
    export(Checkpoint(model.config, model.state_dict()), tmp_path / "x", context_length=37)
    files, beside = {path.stem: ast.parse(path.read_text()) for path in (tmp_path / "x").glob("*.py")}, set()
    for tree in files.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                beside.add(node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                name = str(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                assert name in {"torch", "transformers"} | sys.stdlib_module_names
    own = KINDS[kind].get("positions", "alibi")
    code = {"base", own, *(name.removesuffix(".py") for name in EVERY_FOLDER)}
    assert set(files) == (set() if kind.startswith("gpt2") else code)
    assert beside == set(files) - {"modeling_gptstar"}


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(bpe, tmp_path, monkeypatch):
    model = build("gpt2")
    checkpoint = Checkpoint(model.config, model.state_dict(), bpe.json_text)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine").write_text("")
    with pytest.raises(CheckpointError, match="is not overwritten"):
        export(checkpoint, tmp_path / "x", context_length=37)
    with pytest.raises(CheckpointError, match=r"exceeds the capacity of the positions, model\.n_ctx=37"):
        export(checkpoint, tmp_path / "y", context_length=38)

    with pytest.raises(CheckpointError, match="--context-length 0 is below 1"):
        export(checkpoint, tmp_path / "y", context_length=0)
    (tmp_path / "here").mkdir()
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path / "here")
        with pytest.raises(CheckpointError, match="is the current folder"):
            export(checkpoint, Path(), context_length=37)
    (tmp_path / "here").rmdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # as a full disk: the weights don't fit
    try:
        with pytest.raises(CheckpointError, match=r"can't write .*y \(.*too large"):
            export(checkpoint, tmp_path / "y", context_length=37)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(os.listdir(tmp_path)) == ["x"]
    (tmp_path / "y").mkdir()
    export(checkpoint, tmp_path / "y", context_length=37)  # an empty folder will do
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


def test_what_does_not_fit_is_named(bpe, tmp_path):
    folder = tmp_path / "x"
    exported(build("gpt2"), bpe, folder)
    whole = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "llama"}, "model_type=llama is not supported"),
        ({"n_layer": 4}, r"the weights lack transformer\.h\.3\.ln_1\.weight"),
        ({"n_layer": 2}, r"transformer\.h\.2\.\S+ is not a tensor of this model"),
        ({"n_inner": 95}, r"h\.0\.mlp\.c_fc\.weight is \[24, 96\], not \[24, 95\]"),
        ({"n_embd": None}, "does not describe a model"),
        ({"activation_function": "relu"}, "activation_function=relu is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
    ):
        (folder / "config.json").write_text(json.dumps(whole | change))
        with pytest.raises(CheckpointError, match=message):
            read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"can't read .*config\.json"):
        read(folder)
    (folder / "config.json").write_text(json.dumps(whole))
    cut = (folder / "model.safetensors").read_bytes()[:-100]
    (folder / "model.safetensors").write_bytes(cut)
    with pytest.raises(CheckpointError, match=r"can't read model\.safetensors"):
        read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no \\*\\.safetensors"):
        read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither best\.ckpt nor last\.ckpt, nor the config\.json"):
        find(folder)


def test_what_is_damaged_elsewhere_is_named(bpe, tmp_path):
    folder = tmp_path / "x"
    exported(build("alibi"), bpe, folder)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"positions": "sinus"}, r"positions=sinus is not known: did you mean sinusoidal\?"),
        ({"n_layers": 4}, r"the weights lack blocks\.3\."),
        ({"n_ctx": 5}, "n_ctx=5 does not fit model.positions=alibi"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CheckpointError, match=message):
            read(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ["model.safetensors"]}')
    with pytest.raises(CheckpointError, match="has no weight_map"):
        read(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"norm.weight": "elsewhere.safetensors"}}')
    with pytest.raises(CheckpointError, match=r"can't read elsewhere\.safetensors"):
        read(folder)


@pytest.mark.parametrize("lie", ["length", "offsets", "shape", "overlap", "words"])
def test_a_safetensors_header_that_lies_is_refused(lie, bpe, tmp_path):
    exported(build("alibi"), bpe, tmp_path / "x")
    file = tmp_path / "x/model.safetensors"
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    name, other = [key for key in header if key != "__metadata__"][:2]
    if lie == "offsets":
        header[name]["data_offsets"] = [0, 2**40]
    elif lie == "shape":
        header[name]["shape"] = [2**31, 2**31]
    elif lie == "overlap":
        header[name]["data_offsets"] = header[other]["data_offsets"]
    words = b"[" * size if lie == "words" else json.dumps(header).encode()
    length = 2**62 if lie == "length" else len(words)
    file.write_bytes(length.to_bytes(8, "little") + words + data[8 + size :])
    with pytest.raises(CheckpointError, match=r"can't read model.safetensors"):
        read(tmp_path / "x")


def test_a_vocabulary_may_be_padded_and_its_padding_is_never_drawn(bpe, tmp_path):
    torch.manual_seed(5)
    model = GPT(GPTConfig(**(SIZES | KINDS["alibi"] | {"n_vocab": N_VOCAB + 20}))).eval()
    with torch.no_grad():
        model.norm.bias.add_(5)
        model.token_embedding.weight[N_VOCAB:] = 1  # by far the likeliest
    theirs = exported(model, bpe, tmp_path / "x")
    ours = load(tmp_path / "x")
    assert model(torch.tensor([[5]]))[0, -1].argmax() >= N_VOCAB
    for sampling in (GREEDY, USUAL, Sampling(2.0), Sampling(repetition_penalty=1.3)):
        for text in generate(ours, "the", 20, n=3, sampling=sampling, n_likeliest=400):
            assert max(text.tokens) < N_VOCAB
            assert {token for likeliest in text.likeliest for token, _ in likeliest} == set(range(N_VOCAB))
    tokens = torch.tensor([[5, 6]])
    assert theirs.generate(tokens, max_new_tokens=20, attention_mask=torch.ones_like(tokens)).max() < N_VOCAB


def test_a_tokenizer_of_another_size_is_refused(bpe, tmp_path):
    exported(build("alibi"), bpe, tmp_path / "x")
    larger = Tokenizer.train([*sentences(60, 80, seed=1), "naïve café"], N_VOCAB + 1)
    (tmp_path / "x/tokenizer.json").write_text(larger.json_text)
    with pytest.raises(CheckpointError, match=r"tokenizer.json has 301 tokens, the model 300"):
        read(tmp_path / "x")


def test_a_pickle_is_read_only_where_it_holds_tensors_alone(bpe, tmp_path):
    folder, model = tmp_path / "x", build("gpt2")
    theirs = exported(model, bpe, folder)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    assert all(torch.equal(read(folder).weights[name], tensor) for name, tensor in model.state_dict().items())
    for content, message in (([1], "is not a state dict"), ({"a": Path("x")}, "its pickle contains code")):
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=message):
            read(folder)
