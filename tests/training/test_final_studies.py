"""Studies at the end of a run: what they write, and what is refused before the run trains."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.results.attention_heads import heads
from gptstar.training.metrics_csv import read_metrics
from support.runs import run_here

Overrides = Callable[..., list[str]]
READING = ("reading.multiples=[1,2]", "reading.max_tokens=256")
RECALL = "data.corpora.recall.source={kind: recall, words: english, length: 64, n_documents: 300}"
MIXED = (f"+{RECALL}", "model.n_vocab=500")


def results(folder: Path) -> dict[str, object]:
    return json.loads((folder / "results.json").read_text())


def test_a_run_ends_with_its_studies(overrides: Overrides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(overrides(*MIXED, *READING, "final_studies=[recall,heads]", "total_steps=6"))
    said = capsys.readouterr().out.replace("\n", " ")
    for what in ("asking for values by their keys", "measuring attention heads"):
        assert f"after the last step: {what}" in said
    assert "at 32, 64 tokens" in said
    recall, of_heads = results(tmp_path / "run/recall"), results(tmp_path / "run/heads")
    assert recall["kind"] == "recall"
    assert recall["protocol"]["multiples"] == [1, 2]
    assert {cell["context_length"] for cell in recall["curves"][0]["lengths"]} == {32, 64}
    assert recall["curves"][0]["words"] == "english"
    assert of_heads["kind"] == "heads"
    assert [each["context_length"] for each in of_heads["lengths"]] == [32, 64]
    assert {*heads(tmp_path / "run")["context_length"]} == {32.0, 64.0}
    assert of_heads["checkpoint"]["sha256"] == recall["curves"][0]["checkpoint"]["sha256"]


@pytest.mark.slow
def test_a_study_that_is_asked_for_later_trains_nothing_again(
    trained_once: Callable[..., Path], text: str, tmp_path: Path
) -> None:
    from support.runs import SMALL

    shutil.copytree(trained_once(*READING), tmp_path / "run")
    before = read_metrics(tmp_path / "run")
    words = [*SMALL, "data=local", f"data.files={text}", f"output={tmp_path / 'run'}", *READING]
    run_here([*words, "final_studies=[heads]"])
    assert read_metrics(tmp_path / "run") == before
    assert (tmp_path / "run/heads/results.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("final_studies=[heads]",), "final_studies=[heads] are done at the lengths of reading, which names none"),
        ((*READING, "final_studies=[heads,heads]"), "final_studies=[heads,heads] names one twice"),
        ((*READING, "final_studies=[recal]"), "final_studies"),
        ((*READING, "final_studies=[recall]"), "of them are one token of the text's tokenizer, where 4 are needed"),
        (
            (*MIXED, *READING, "final_studies=[recall]", "data.context_length=8"),
            "final_studies=[recall] has texts of 11 tokens and more, and data.context_length=8",
        ),
        (
            ("reading.multiples=[1,2048]", "reading.max_tokens=256", "final_studies=[heads]"),
            "final_studies=[heads] can't be done: no document is longer than 65,536 tokens",
        ),
    ],
)
def test_what_can_not_be_studied_is_refused_before_training(
    words: tuple[str, ...], said: str, overrides: Overrides, refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert said in refusal(run_here, overrides(*words))
    assert not list(tmp_path.glob("run/*.ckpt"))
