"""The published estimator: its dip, and what else it does to the letter."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.nn.functional import cross_entropy

from gptstar.data.storage.stream import TokenStream
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.curve import Plan, read_curve
from gptstar.evaluation.length.legacy import LegacyPlan, legacy_text
from gptstar.evaluation.length.reading import Reader, losses_of
from gptstar.evaluation.length.text import Text
from gptstar.model import GPT, GPTConfig

CPU = torch.device("cpu")
LENGTHS = (512, 1024, 1536, 2048, 3072, 4096)
N_TOKENS = 287_644
"""Of WikiText-2's test set, by GPT-2's tokenizer."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox jumps over the lazy dog, émigrés und Ärger\n\n = = "] * 3, 300)


def text_of(n_tokens: int) -> Text:
    return Text("made up", {}, (TokenStream([np.zeros(n_tokens, dtype=np.int32)]),), np.ones(1, dtype=np.int64))


def settings(path: Path | str = "x", metric: str = "perplexity", **more: int) -> LengthConfig:
    return LengthConfig(protocol="legacy", text=str(path), legacy_metric=metric, **more)


def better_with_context(tokens: torch.Tensor, first: int) -> torch.Tensor:
    """Losses that fall with every token of context, the more slowly the more there is."""
    before = torch.arange(first, tokens.shape[1] - 1) + 1.0
    return (3.4 + 2.0 * before**-0.5).expand(len(tokens), -1)


def test_the_published_estimator_dips_where_it_drops_more_and_disjoint_does_not() -> None:
    reader = Reader(better_with_context, CPU, 2**16)
    plan = LegacyPlan(text_of(N_TOKENS), N_TOKENS, settings(), LENGTHS)
    dropped = {length: N_TOKENS - length * len(plan.windows(length)) for length in LENGTHS}
    assert dropped == {512: 412, 1024: 924, 1536: 412, 2048: 924, 3072: 1948, 4096: 924}
    legacy = read_curve(reader, plan, name="m")
    perplexity = {result.context_length: result.perplexity.value for result in legacy.lengths}
    # as the published curve does: better at 3072 than at both of its neighbours
    assert perplexity[3072] < perplexity[2048]
    assert perplexity[3072] < perplexity[4096]
    config = LengthConfig(context_lengths=LENGTHS)
    disjoint = read_curve(reader, Plan(text_of(N_TOKENS + 1), config, LENGTHS), name="m")
    assert {result.tokens for result in disjoint.lengths} == {N_TOKENS}
    losses = [result.loss.value for result in disjoint.lengths]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
    # the whole of the dip is what was dropped: divided by the tokens that were kept, the curve is monotone as well
    kept = [result.loss.value * N_TOKENS / (N_TOKENS - dropped[result.context_length]) for result in legacy.lengths]
    assert kept == sorted(kept, reverse=True)
    # and averaged over the windows that were kept, as of enwik8 and text8, it does not dip
    plan = LegacyPlan(text_of(N_TOKENS), N_TOKENS, settings(metric="bits_per_byte"), LENGTHS)
    averaged = read_curve(reader, plan, name="m")
    bits = [result.bits_per_byte.value for result in averaged.lengths]
    assert bits == sorted(bits, reverse=True)


@pytest.mark.parametrize("metric", ["perplexity", "bits_per_byte"])
def test_it_is_what_the_original_computed(metric: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Written out as the issue describes the original, with a model."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(n_layers=1, d_model=24, n_heads=3, n_vocab=300)).eval()
    file = tmp_path / "text8"
    file.write_text("the lazy dog jumps over émigrés, quick brown fox\n" * 5)
    text, n_bytes = legacy_text(tokenizer, settings(file, metric))
    tokens = text.documents[0].read(0, len(text.documents[0]))
    reader = Reader(losses_of(model, CPU), CPU, 64)
    lengths = (7, 19, 32)
    curve = read_curve(reader, LegacyPlan(text, n_bytes, settings(file, metric), lengths), name="m")
    for length, result in zip(lengths, curve.lengths, strict=True):
        means = []
        for start in range(0, len(tokens), length):
            window = torch.from_numpy(tokens[start : start + length])
            if len(window) < length:
                continue
            logits = model(window[None])[0, :-1].detach()
            means.append(float(cross_entropy(logits, window[1:])))
        if metric == "perplexity":
            expected = math.exp(sum(mean * length for mean in means) / len(tokens))
            assert result.perplexity.value == pytest.approx(expected, rel=1e-6)
        else:
            expected = np.mean(means) / math.log(2) * len(tokens) / file.stat().st_size
            assert result.bits_per_byte.value == pytest.approx(expected, rel=1e-6)
        assert result.tokens == len(means) * (length - 1)
        assert math.isnan(result.loss.low)


def test_wikitext_is_joined_as_the_hub_has_its_lines(tokenizer: Tokenizer, tmp_path: Path) -> None:
    raw = " \n = Robert = \n \n Robert is an actor . \n"
    (tmp_path / "wiki.test.raw").write_text(raw)
    rows = ["", " = Robert = \n", "", " Robert is an actor . \n"]  # the Hub's wikitext-2-raw-v1
    text, n_bytes = legacy_text(tokenizer, settings(tmp_path / "wiki.test.raw"))
    assert tokenizer.decode(text.documents[0].read(0, len(text.documents[0]))) == "\n\n".join(rows)
    assert n_bytes == len("\n\n".join(rows))
    assert text.documents[0].read(0, 1) != tokenizer.end_of_text


def test_rows_are_joined_the_empty_ones_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = ["", " = Robert = \n", "", " Robert is an actor . \n", ""]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "test.parquet")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    for name in ("test.parquet", "test.jsonl"):
        text, n_bytes = legacy_text(tokenizer, settings(tmp_path / name))
        assert tokenizer.decode(text.documents[0].read(0, len(text.documents[0]))) == "\n\n".join(rows)
        assert n_bytes == len("\n\n".join(rows))


def test_the_last_bytes_are_read_from_a_whole_character_on(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = "émigré " * 9
    (tmp_path / "enwik8").write_text(content)
    whole, n_bytes = legacy_text(tokenizer, settings(tmp_path / "enwik8", "bits_per_byte"))
    assert n_bytes == len(content.encode())
    end, n_bytes = legacy_text(tokenizer, settings(tmp_path / "enwik8", "bits_per_byte", last_bytes=17))
    assert tokenizer.decode(end.documents[0].read(0, len(end.documents[0]))) == "migré émigré "[-len("migré émigré ") :]
    assert n_bytes == len("migré émigré ".encode())
    assert len(end.documents[0]) < len(whole.documents[0])


def test_half_precision_by_choice_and_undefined_lengths() -> None:
    torch.manual_seed(1)
    model = GPT(GPTConfig(2, 24, 3, 31, positions="learned", n_ctx=16)).eval()
    text = Text("", {}, (TokenStream([np.arange(70) % 31]),), np.ones(31, dtype=np.int64))
    found = []
    for dtype in (torch.float32, torch.float16):
        reader = Reader(losses_of(model, CPU, dtype), CPU, 64, capacity=16)
        curve = read_curve(reader, LegacyPlan(text, 70, settings(), (8, 16, 32)), name="m")
        assert [result.loss is None for result in curve.lengths] == [False, False, True]
        found.append(curve.lengths[0].loss.value)
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], abs=1e-2)


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(DataError, match="the text has 7 tokens, less than one window of 8: read shorter contexts"):
        LegacyPlan(text_of(7), 7, settings(), (8,))
