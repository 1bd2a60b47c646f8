"""Windows of attention, sinks and SSMax in an exported folder: transformers computes what we compute."""

import json
from pathlib import Path

import pytest
import torch

from gptstar.checkpoint.format import Checkpoint
from gptstar.checkpoint.huggingface.export import export
from gptstar.checkpoint.huggingface.gpt2 import is_gpt2
from gptstar.checkpoint.read import read
from gptstar.model.positions import POSITIONS, Learned
from support.positions import build, greedily

MODIFIERS = {"attention_window": 5, "attention_sinks": 2, "softmax_scale": {"kind": "ssmax", "context_length": 64}}
KINDS = ["alibi", "rotary", "none", "t5", "kerple", "fire", "log_alibi", "p_rope", "fox", "sinusoidal"]


@pytest.mark.parametrize(
    "kind", [pytest.param(each, marks=[pytest.mark.slow] * (each not in ("alibi", "rotary", "fox"))) for each in KINDS]
)
@pytest.mark.usefixtures("transformers_offline")
def test_an_exported_model_has_our_logits_and_texts(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = build(POSITIONS.parse(kind), **MODIFIERS)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(3)  # else attention is nearly uniform
    export(Checkpoint(model.config, model.state_dict()), tmp_path / "x", context_length=40)
    assert read(tmp_path / "x").model == model.config
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "x", trust_remote_code=True).eval()
    tokens, mask = torch.randint(1, 31, (2, 17)), torch.ones(2, 17, dtype=torch.int64)
    mask[1, :6] = 0
    with torch.inference_mode():
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), atol=1e-5, rtol=0)
        for length in (1, 6, 7, 8):  # up to what the window shows, and beyond
            ours = model(tokens[:, :length])
            torch.testing.assert_close(theirs(tokens[:, :length]).logits, ours, atol=1e-5, rtol=0)
        found = theirs(tokens, attention_mask=mask).logits
        torch.testing.assert_close(found[0], model(tokens[:1])[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(found[1, 6:], model(tokens[1:, 6:])[0], atol=1e-5, rtol=0)
        places = torch.tensor([[*range(9), *range(8)]])  # two sequences in a row
        found = theirs(tokens[:1], position_ids=places).logits[0]
        documents = (torch.arange(17) >= 9).long()[None]
        torch.testing.assert_close(found, model(tokens[:1], documents=documents)[0], atol=1e-5, rtol=0)
        for cache in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
            options = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0, "disable_compile": True}
            texts = theirs.generate(tokens, attention_mask=mask, **options, **cache)
            assert texts[1, 17:].tolist() == greedily(model, tokens[1, 6:].tolist(), 7)


@pytest.mark.parametrize("modifier", [{"attention_window": 5}, {"softmax_scale": "ssmax"}])
def test_gpt2s_layout_is_not_for_them(modifier: dict[str, object], tmp_path: Path) -> None:
    changes = {"residual": "sequential", "d_head": 10}
    assert is_gpt2(build(Learned(40), **changes).config)
    model = build(Learned(40), **changes, **modifier)
    assert not is_gpt2(model.config)
    export(Checkpoint(model.config, model.state_dict()), tmp_path / "x", context_length=40)
    assert json.loads((tmp_path / "x/config.json").read_text())["model_type"] == "gptstar"
    assert read(tmp_path / "x").model == model.config
