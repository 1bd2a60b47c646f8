"""A study from checkpoints to its files: tables, pictures, results, refusals; on real text where it is there."""

import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gptstar import results
from gptstar.checkpoint.format import Checkpoint
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError, DataError
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.curve import Curve
from gptstar.evaluation.length.source import Named, parts_of
from gptstar.evaluation.length.study import study
from gptstar.model import GPT, GPTConfig
from support.studies import checkpoint_of, named
from support.text import QUIET, config, sentences

CPU = torch.device("cpu")


def run(
    checkpoints: list[Named], output: Path, shards: str | None = None, **settings: object
) -> tuple[str, list[Curve]]:
    printed = StringIO()
    console = Console(file=printed, width=100)
    settings = {"max_tokens": 1500, **settings}
    curves = study(checkpoints, LengthConfig(**settings), shards=shards, device=CPU, console=console, output=output)
    return printed.getvalue(), curves


def results_in(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("protocol", ["disjoint", "sliding", "fixed_targets", "legacy"])
def test_each_protocol_leaves_a_table_a_picture_and_results(
    protocol: str, tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer)
    printed, (curve,) = run([named(checkpoint)], tmp_path / "out", text=book, protocol=protocol)
    results = results_in(tmp_path / "out")
    assert (results["kind"], results["protocol"]["protocol"]) == ("length", protocol)
    assert list(results["text"]["files"]) == [book]
    (found,) = results["curves"]
    assert [each["context_length"] for each in found["lengths"]] == [32, 64, 128, 256]
    assert found["trained_at"] == 32
    assert found["checkpoint"]["sha256"] == "0" * 64
    for each, result in zip(found["lengths"], curve.lengths, strict=True):
        # the published estimator's is lower by what it leaves out
        assert each["loss"]["value"] == pytest.approx(math.log(300), abs=1.0 if protocol == "legacy" else 0.1)
        assert each["tokens"] == result.tokens <= 1500
        assert each["seconds"] > 0
        assert each["memory"] > 50e6
    if protocol != "legacy":
        assert len({each["tokens"] for each in found["lengths"]}) == 1
        assert found["lengths"][1]["change"]["low"] < found["lengths"][1]["change"]["high"]
        assert "paired" in found["lengths"][1]["change"]["test"]
    assert "perplexity" in printed
    assert "bits/byte" in printed
    files = {"context_length.png", "results.json", "results.md"}
    files |= {"position.png"} if protocol in ("disjoint", "sliding") else set()
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    for name in files - {"results.json", "results.md"}:
        assert (tmp_path / "out" / name).stat().st_size > 10_000
    assert "| 256 |" in (tmp_path / "out/results.md").read_text()


@pytest.mark.slow
def test_several_models_are_in_one_picture_and_rotary_is_no_straw_man(
    tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    variants = [
        ("alibi", {}),
        ("learned", {"positions": "learned", "n_ctx": 64}),
        ("rotary", {"positions": "rotary"}),
        ("none", {"positions": "none"}),
    ]
    models = [named(checkpoint_of(tokenizer, **variant), name) for name, variant in variants]
    printed, curves = run(models, tmp_path, text=book)
    assert [curve.name for curve in curves] == ["alibi", "learned", "rotary", "rotary, NTK", "rotary, YaRN", "none"]
    assert [curve.scaling for curve in curves] == ["none", "none", "none", "ntk", "yarn", "none"]
    learned = results_in(tmp_path)["curves"][1]
    assert [each["loss"] is None for each in learned["lengths"]] == [False, False, True, True]
    assert learned["lengths"][3]["bits_per_byte"] is None
    assert printed.count("undefined") == 2
    assert (tmp_path / "results.md").read_text().count("undefined") == 2
    plain, ntk, yarn = ([result.loss.value for result in curve.lengths] for curve in curves[2:5])
    assert plain[0] == ntk[0] == yarn[0]  # at the training context there is nothing to scale
    for longer in range(1, 4):
        assert len({plain[longer], ntk[longer], yarn[longer]}) == 3
    _, (only,) = run([models[2]], tmp_path / "one", text=book, rotary_scaling=("yarn",))
    assert [result.loss.value for result in only.lengths] == pytest.approx(yarn, abs=1e-6)


def test_alibi_is_read_with_smaller_slopes_beyond_its_training_context(
    tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    alibi, rotary = named(checkpoint_of(tokenizer), "a"), named(checkpoint_of(tokenizer, positions="rotary"), "r")
    settings = {"text": book, "alibi_scaling": ("none", "interpolated", "ntk"), "rotary_scaling": ("none", "yarn")}
    _, curves = run([alibi, rotary], tmp_path, **settings)
    assert [curve.name for curve in curves] == ["a", "a, interpolated", "a, NTK", "r", "r, YaRN"]
    assert [each["scaling"] for each in results_in(tmp_path)["curves"]] == [each.scaling for each in curves]
    plain, interpolated, ntk = ([result.loss.value for result in curve.lengths] for curve in curves[:3])
    assert plain[0] == interpolated[0] == ntk[0]  # at the training context there is nothing to scale
    for longer in range(1, 4):
        assert len({plain[longer], interpolated[longer], ntk[longer]}) == 3
    assert (tmp_path / "results.md").read_text().count("## a, interpolated") == 1
    frame = results.lengths(tmp_path)
    assert list(frame.groupby(["checkpoint", "scaling"], sort=False).size()) == [4] * 5
    _, (only,) = run([alibi], tmp_path / "one", text=book, alibi_scaling=("ntk",))
    assert [result.loss.value for result in only.lengths] == pytest.approx(ntk, abs=1e-6)


def test_models_of_several_training_contexts_are_read_at_multiples_of_the_shortest(
    tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    models = [named(checkpoint_of(tokenizer, trained_at=each), str(each)) for each in (64, 16, None)]
    _, curves = run(models, tmp_path, text=book)
    assert {tuple(result.context_length for result in curve.lengths) for curve in curves} == {(16, 32, 64, 128)}
    assert [curve.trained_at for curve in curves] == [64, 16, None]


def test_two_models_have_the_paired_difference_of_their_losses(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    models = [named(checkpoint_of(tokenizer, **each), name) for name, each in (("a", {}), ("b", {"positions": "none"}))]
    printed, (first, second) = run(models, tmp_path, text=book)
    assert "second − first" in printed
    mine, theirs = first.lengths[-1].loss, second.lengths[-1].loss
    assert mine is not None
    assert theirs is not None
    difference = theirs.value - mine.value
    digits = 4 if 5e-5 <= abs(difference) < 5e-4 else 3  # enough to show the sign
    change = f"{difference:+z.{digits}f} ± ".replace("-", "−")
    assert change in next(line for line in printed.splitlines() if f"{first.lengths[-1].context_length:,} " in line)


def test_two_tokenizers_are_compared_by_bits_per_byte(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    other = Tokenizer.train(sentences(9, 200, 5), 277)
    models = [named(checkpoint_of(tokenizer), "a"), named(checkpoint_of(other, n_vocab=277), "b")]
    printed, (first, second) = run(models, tmp_path, text=book, max_tokens=10**6)
    assert first.lengths[0].tokens < second.lengths[0].tokens
    assert first.lengths[0].bytes == second.lengths[0].bytes
    text = [json.loads(line)["text"] for line in Path(book).read_text().splitlines()]
    assert first.lengths[0].bytes == sum(len(each.encode()) for each in text)
    assert "The tokenizers differ: compare bits per byte" in printed
    assert first.units == "12 documents"


def test_a_checkpoint_is_read_on_what_was_held_out_from_it(text: str, tmp_path: Path) -> None:
    shards = ensure_prepared(config(files=text, shards=str(tmp_path / "s"), validation_fraction=0.2), 300, QUIET)
    bare = checkpoint_of(shards.tokenizer)
    data = {"shards": str(shards.folder), "fingerprint": shards.manifest.fingerprint}
    known = replace(bare, training=replace(bare.training, data=data))
    _, (curve,) = run([named(known)], tmp_path / "out")
    assert [each.context_length for each in curve.lengths] == [32, 64, 128, 256]
    assert 1000 < curve.lengths[0].tokens <= 1500
    assert curve.units.endswith("stretches")
    assert results_in(tmp_path / "out")["text"]["fingerprint"] == shards.manifest.fingerprint
    _, (apart,) = run([named(known)], tmp_path / "apart", documents="apart", max_tokens=None, context_lengths=(32, 64))
    assert apart.units == f"{shards.manifest.total('validation', 'documents')} documents"
    assert apart.lengths[0].bytes == shards.manifest.total("validation", "bytes")
    # given, any model of the tokenizer reads them
    assert run([named(bare)], tmp_path / "given", str(shards.folder))[1][0].lengths[0].loss == curve.lengths[0].loss
    changed = replace(bare, training=replace(bare.training, data=data | {"fingerprint": "x"}))
    with pytest.raises(DataError, match="have changed since the checkpoint read them"):
        parts_of([named(changed)], LengthConfig(), None)
    gone = replace(bare, training=replace(bare.training, data=data | {"shards": str(tmp_path / "gone")}))
    with pytest.raises(DataError, match=r"gone: prepare the same text again there, give shards=DIR"):
        parts_of([named(gone)], LengthConfig(), None)
    other = Tokenizer.train(sentences(9, 200, 5), 277)
    with pytest.raises(DataError, match="made with another tokenizer than the checkpoint's"):
        parts_of([named(checkpoint_of(other, n_vocab=277))], LengthConfig(), str(shards.folder))


def test_what_can_not_be_read_is_refused_before_anything_is(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    def refused(checkpoint: Checkpoint, shards: str | None = None, **settings: object) -> str:
        with pytest.raises((ConfigError, DataError)) as error:
            run([named(checkpoint, "runs/x")], tmp_path / "out", shards, **settings)
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    good = checkpoint_of(tokenizer)
    assert "does not say what it was trained on: give evaluation.text=[…]" in refused(good)
    assert "name two texts: leave one out" in refused(good, "shards", text=book)
    assert "runs/x holds no tokenizer: give tokenizer=FILE" in refused(checkpoint_of(None), text=book)
    assert "the tokenizer has 300 tokens, the model 299" in refused(checkpoint_of(tokenizer, n_vocab=299), text=book)
    unknown = checkpoint_of(tokenizer, trained_at=None)
    assert "does not know its training context" in refused(unknown, text=book)
    rotary = checkpoint_of(tokenizer, trained_at=None, positions="rotary")
    assert "runs/x has rotary positions and does not know its training context" in refused(
        rotary, text=book, context_lengths=(8, 16)
    )
    assert refused(rotary, text=book, alibi_scaling=("none", "ntk"), trained_at=16) == (
        "evaluation.alibi_scaling=[none,ntk] is for alibi positions, and there are rotary only: leave it out"
    )
    assert "runs/x has alibi positions and does not know its training context" in refused(
        unknown, text=book, context_lengths=(8, 16), alibi_scaling=("interpolated",)
    )
    assert "the longest here has" in refused(good, text=book, protocol="fixed_targets", context_lengths=(8, 2**14))
    assert "can't be filled" in refused(good, text=book, context_lengths=(8, 2**14))
    assert "less than one window of 16,384" in refused(good, text=book, protocol="legacy", context_lengths=(2**14,))


def test_a_checkpoint_that_knows_nothing_is_told(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    unknown = checkpoint_of(tokenizer, trained_at=None, positions="rotary")
    _, curves = run([named(unknown), named(unknown)], tmp_path, text=book, trained_at=16)
    assert [curve.name for curve in curves] == ["m", "m, NTK", "m, YaRN", "m (2)", "m (2), NTK", "m (2), YaRN"]
    assert [result.context_length for result in curves[0].lengths] == [16, 32, 64, 128]
    assert curves[0].trained_at == 16


GPT2 = "tokenizer/gpt2.json"


@pytest.fixture(scope="module")
def wide(shared: Path) -> Named:
    """A tiny model of GPT-2's vocabulary."""
    torch.manual_seed(0)
    model = GPTConfig(n_layers=1, d_model=16, n_heads=2, n_vocab=50257)
    return named(Checkpoint(model, GPT(model).state_dict(), (shared / GPT2).read_text(), None))


@pytest.mark.slow
def test_wikitext_articles_are_read_whole(shared: Path, wide: Named, tmp_path: Path) -> None:
    path = shared / "benchmarks/wikitext.jsonl"
    _, (curve,) = run([wide], tmp_path, text=str(path), context_lengths=(256, 512), max_tokens=8192)
    short, long = curve.lengths
    assert 6000 < short.tokens == long.tokens <= 8192
    assert curve.units.endswith("documents")
    assert short.loss.low < short.loss.value < short.loss.high
    assert short.loss.value == pytest.approx(math.log(50257), abs=0.1)


@pytest.mark.slow
def test_books_have_targets_with_a_whole_context_and_articles_don_t(shared: Path, wide: Named, tmp_path: Path) -> None:
    lengths = (1024, 2048)
    settings = {"protocol": "fixed_targets", "context_lengths": lengths, "max_tokens": 2048}
    books = str(shared / "corpora/philpapers/*.jsonl.zst")
    _, (curve,) = run([wide], tmp_path / "books", text=books, **settings)
    assert [result.context_length for result in curve.lengths] == [512, *lengths]
    assert {result.tokens for result in curve.lengths} == {2048}
    settings["context_lengths"] = (1024, 65536)
    with pytest.raises(DataError, match=r"longer than the longest context, 65,536; the longest here has [\d,]+ tokens"):
        run([wide], tmp_path / "wiki", text=str(shared / "benchmarks/wikitext.jsonl"), **settings)
