"""A study of heads from a checkpoint to its files: table, picture, results, refusals, time and memory."""

import json
import shutil
import warnings
from dataclasses import asdict, replace
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
from gptstar.evaluation.heads import HeadsConfig
from gptstar.evaluation.heads.study import HeadsStudy, Windows, study
from gptstar.evaluation.length import LengthConfig
from gptstar.evaluation.length.source import Named
from gptstar.evaluation.length.study import study as length_study
from gptstar.evaluation.length.text import text_of_files
from gptstar.model.positions import POSITIONS
from gptstar.results.loaded import Loaded
from gptstar.results.report import write_report
from support.runs import evaluate_here
from support.studies import checkpoint_of, named
from support.text import QUIET, config

CPU = torch.device("cpu")


def run(checkpoint: Named, output: Path, shards: str | None = None, **settings: object) -> tuple[str, HeadsStudy]:
    printed = StringIO()
    console = Console(file=printed, width=80)
    settings = {"max_queries": 320, **settings}
    found = study(checkpoint, HeadsConfig(**settings), shards=shards, device=CPU, console=console, output=output)
    return printed.getvalue(), found


@pytest.mark.parametrize(
    "kind",
    [each if each in ("alibi", "rotary") else pytest.param(each, marks=pytest.mark.slow) for each in POSITIONS.names()],
)
def test_every_kind_leaves_a_table_a_picture_and_results(
    kind: str, tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    variant = {"n_ctx": 64} if kind == "learned" else {}
    checkpoint = checkpoint_of(tokenizer, positions=kind, d_head=8, **variant)
    printed, found = run(named(checkpoint), tmp_path / "out", text=book)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"heads.png", "results.json", "results.md"}
    assert (tmp_path / "out/heads.png").stat().st_size > 20_000
    tree = json.loads((tmp_path / "out/results.json").read_text())
    assert (tree["kind"], tree["positions"], tree["trained_at"], tree["units"]) == ("heads", kind, 32, "12 documents")
    assert (tree["reaches"] is not None) == (kind == "alibi")
    assert [each["context_length"] for each in tree["lengths"]] == [32, 64, 128, 256]
    n_read = 2 if kind == "learned" else 4
    assert [len(each["heads"]) for each in tree["lengths"]] == [6] * n_read + [0] * (4 - n_read)
    assert printed.count("undefined") == 4 - n_read
    for each in found.lengths[:n_read]:
        assert each.queries == 320
        for head in each.heads:
            assert 0 <= head.first.low <= head.first.value <= head.first.high <= 1
            assert 1 > head.tails[0] > 0
            assert list(head.tails) == sorted(head.tails, reverse=True)
            assert 0 < head.mean_distance < head.reach < each.context_length
            assert (head.beyond is None, head.is_blind is None) == (each.context_length == 32,) * 2
            if head.beyond is not None:
                at_32 = head.tails[each.edges.index(32)]
                assert head.beyond.value == pytest.approx(at_32, rel=1e-9)
                assert head.beyond.low <= at_32 <= head.beyond.high
            assert (head.predicted_to_miss_first is not None) == (kind == "alibi")
    frame = results.heads(tmp_path)
    assert len(frame) == 6 * n_read
    assert list(frame["context_length"].unique()) == [32, 64, 128, 256][:n_read]
    assert (frame["slope"].notna() == (kind == "alibi")).all()
    assert (frame["beyond"].isna() == (frame["multiple"] == 1)).all()


def test_a_steep_head_is_blind_measured_and_predicted(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    model = named(checkpoint_of(tokenizer, n_heads=8, trained_at=256))
    printed, found = run(model, tmp_path, text=book, context_lengths=(256, 512), queries=16)
    assert found.reaches is not None
    nearest = found.lengths[1]
    blind = [each.is_blind for each in nearest.heads]
    assert blind == [each.predicted_blind for each in nearest.heads] == [True, *[False] * 7] * 2
    unseen = [each.misses_first for each in nearest.heads]
    assert unseen == [each.predicted_to_miss_first for each in nearest.heads] == [True, True, *[False] * 6] * 2
    assert nearest.heads[0].beyond.value == 0
    assert "2 of 16 (2)" in printed
    assert "4 of 16 (4)" in printed
    text = (tmp_path / "results.md").read_text()
    assert "87.3/m" in text
    assert "104.0/m" in text
    frame = results.heads(tmp_path)
    assert frame["is_blind"].sum() == frame["predicted_blind"].sum() == 2


def test_the_text_and_the_windows_are_those_of_a_study_of_length(text: str, tmp_path: Path) -> None:
    shards = ensure_prepared(config(files=text, shards=str(tmp_path / "s"), validation_fraction=0.2), 300, QUIET)
    bare = checkpoint_of(shards.tokenizer)
    data = {"shards": str(shards.folder), "fingerprint": shards.manifest.fingerprint}
    known = replace(bare, training=replace(bare.training, data=data))
    run(named(known), tmp_path / "heads")
    length_study(
        [named(known)],
        LengthConfig(max_tokens=600),
        shards=None,
        device=CPU,
        console=Console(file=StringIO()),
        output=tmp_path / "length",
    )
    ours, theirs = (json.loads((tmp_path / each / "results.json").read_text()) for each in ("heads", "length"))
    assert ours["text"] == theirs["text"]
    assert ours["units"].endswith("stretches")
    # each kind of results is read by its own function, and none by another's
    assert len(results.heads(tmp_path)) == 4 * 6
    assert len(results.lengths(tmp_path)) == 4
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert results.tasks(tmp_path).empty
        assert results.lengths(tmp_path / "heads").empty
        assert results.heads(tmp_path / "length").empty
    assert {each.category for each in caught} == {results.MissingResultsWarning}


@pytest.mark.slow
def test_a_report_of_runs_does_not_fail_on_a_study_of_heads(trained_once, tmp_path: Path) -> None:
    shutil.copytree(trained_once(), tmp_path / "run")
    output = tmp_path / "run/heads"
    evaluate_here("evaluation=heads", f"checkpoint={tmp_path / 'run'}", f"output={output}", "hardware=cpu")
    frame = results.heads(tmp_path / "run")
    assert set(frame["run"]) == {"run"}
    assert set(frame["multiple"]) == {1, 2, 4, 8}
    written = write_report(Loaded([tmp_path / "run"]), tmp_path / "report")
    assert "damaged" not in written[1].read_text()
    with pytest.raises(ConfigError, match="no results to compare"):
        results.compare(output, output)


def test_windows_end_with_the_same_tokens_at_every_length(tokenizer: Tokenizer, book: str) -> None:
    text = text_of_files(tokenizer, LengthConfig(text=book))
    windows = Windows(text, (32, 128), 11, 200)
    short, long = windows.of(32), windows.of(128)
    assert len(short) == len(long) == 18
    assert [each.at for each in long] == list(range(18))
    for one, other in zip(short, long, strict=True):
        assert (one.size, other.size) == (32, 128)
        read = text.documents[other.document].read(other.start, 128)
        assert read[-32:].tolist() == text.documents[one.document].read(one.start, 32).tolist()
    assert len(set(windows.unit_of.tolist())) == 12
    measured = [(each.document, each.stop - 11) for each in long]
    assert len(set(measured)) == 18


def test_what_can_not_be_read_is_refused_before_anything_is(tokenizer: Tokenizer, book: str, tmp_path: Path) -> None:
    def refused(checkpoint: Checkpoint, shards: str | None = None, **settings: object) -> str:
        with pytest.raises((ConfigError, DataError)) as error:
            run(named(checkpoint, "runs/x"), tmp_path / "out", shards, **settings)
        assert not (tmp_path / "out").exists()
        assert "\n" not in str(error.value)
        return str(error.value)

    good = checkpoint_of(tokenizer)
    assert "does not say what it was trained on: give evaluation.text=[…]" in refused(good)
    assert "name two texts: leave one out" in refused(good, "shards", text=book)
    unknown = checkpoint_of(tokenizer, trained_at=None)
    assert refused(unknown, text=book) == "runs/x does not know its training context: give evaluation.trained_at"
    assert "no document is longer than 16,384 tokens" in refused(good, text=book, context_lengths=(8, 2**14))
    assert "evaluation.queries=9 exceeds the shortest context, 8" in refused(
        good, text=book, context_lengths=(16, 8), queries=9
    )
    assert "evaluation.queries=33 exceeds the shortest context, 32" in refused(good, text=book, queries=33)
    for settings, says in (
        ({"multiples": (0,)}, "evaluation.multiples: 0 is below 1"),
        ({"context_lengths": ()}, "evaluation.context_lengths is empty"),
        ({"queries": 0}, "evaluation.queries"),
    ):
        with pytest.raises(ConfigError, match=says):
            HeadsConfig(**settings).reading  # noqa: B018


def test_several_checkpoints_are_refused(refusal, tmp_path: Path) -> None:
    line = refusal(evaluate_here, "evaluation=heads", "checkpoint=[a,b]", f"output={tmp_path / 'out'}", "hardware=cpu")
    assert "evaluation=heads takes one" in line


@pytest.mark.slow
def test_4096_tokens_are_read_in_memory_that_grows_with_the_length(
    tokenizer: Tokenizer, book: str, tmp_path: Path
) -> None:
    """The scores of a layer's 8 heads would be 0.54 GB in float32; sums take float64."""
    model = named(checkpoint_of(tokenizer, n_heads=8, n_layers=1, d_head=8))
    settings = {"text": book, "documents": "joined", "context_lengths": (1024, 4096), "queries": 1024}
    _, found = run(model, tmp_path, max_queries=1024, **settings)
    short, long = found.lengths
    assert short.memory is not None
    assert long.memory is not None
    assert long.memory - short.memory < 0.3e9, asdict(found)
    assert long.seconds is not None
    assert long.seconds < 60
