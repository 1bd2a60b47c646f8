"""Recall as it is measured: texts as asked for, models that know and that guess, files, and what reads them."""

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from gptstar import results
from gptstar.checkpoint.format import Checkpoint, TrainingState
from gptstar.cli import main
from gptstar.data.text.recall import SYMBOLS, Recall
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.evaluation.recall import RecallConfig
from gptstar.evaluation.recall.curve import RecallCurve, answers_of
from gptstar.evaluation.recall.questions import HAYSTACK, PairQuestions, PasskeyQuestions, lexicon_for
from gptstar.evaluation.recall.study import Named, study
from gptstar.model import GPT, GPTConfig
from gptstar.results.sources import MissingResultsWarning
from support.recall import OWN, asked, guessed, looked_up
from support.runs import SMALL, evaluate_here, run_here
from support.text import sentences

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    recall = Recall(length=96, n_documents=200, words="english")
    return Tokenizer.train([*recall.documents(0), *[HAYSTACK] * 9], 510)


def test_a_model_that_looks_up_is_right_everywhere() -> None:
    curve = asked(looked_up)
    cells = (*curve.lengths, *curve.depths, *curve.loads)
    assert {cell.accuracy.value for cell in cells} == {1.0}
    assert curve.learned
    assert [(cell.context_length, cell.items) for cell in curve.lengths] == [(53, 485), (106, 485), (212, 485)]
    assert [(cell.context_length, cell.pairs) for cell in curve.loads] == [(106, n) for n in (4, 8, 16, 32)]
    assert curve.lengths[0].accuracy.method == "Wilson, clustered"  # the same pairs at five depths


def test_a_model_that_guesses_is_at_chance() -> None:
    curve = asked(guessed, items=397)
    assert not curve.learned
    for cell in (*curve.lengths, *curve.loads):
        assert cell.chance == 1 / cell.pairs
        assert abs(cell.accuracy.value - cell.chance) < 0.06
    constant = asked(lambda questions: np.zeros(len(questions.answers), dtype=np.int64), items=397)
    assert all(cell.accuracy.low < 1 / constant.candidates < cell.accuracy.high for cell in constant.lengths)


@pytest.mark.parametrize("length", [53, 211])
@pytest.mark.parametrize("depth", [0.0, 0.4, 1.0])
def test_the_pair_stands_where_it_was_asked_for_among_as_many_others(length: int, depth: float) -> None:
    questions = PairQuestions(OWN, SYMBOLS, seed=3).at(depth, 5, length, 61)
    assert questions.tokens.shape == (61, length)
    room = length - 1 - 4  # places after end-of-text, without the pair and the query
    for row in questions.tokens.tolist():
        words = [OWN.text_of(token) for token in row[1:]]
        assert row[0] == OWN.end_of_text
        assert words[-2] == SYMBOLS.mark
        place = words.index(words[-1])
        assert 0 <= place - round(depth * room) <= 1
        keys = [word for word in words[:-2] if word in SYMBOLS.keys]
        assert len(keys) == len(set(keys)) == 5
        assert all(words[words.index(key) + 1] in SYMBOLS.values for key in keys)
    assert np.array_equal(looked_up(questions), questions.answers)


def test_lengths_differ_in_distance_alone_and_loads_in_pairs_alone() -> None:
    make = PairQuestions(OWN, SYMBOLS, seed=3)
    filler = {int(OWN.encode([each])[0][0]) for each in SYMBOLS.filler}
    near, far = (make.at(0.5, 4, length, 29) for length in (53, 424))
    for one, other in zip(near.tokens.tolist(), far.tokens.tolist(), strict=True):
        assert sorted(set(one) - filler) == sorted(set(other) - filler)
        assert len([token for token in one if token not in filler]) == len([t for t in other if t not in filler])
    assert np.array_equal(near.answers, far.answers)
    again = make.at(0.5, 4, 53, 29)
    assert np.array_equal(again.tokens, near.tokens)
    assert not np.array_equal(replace(make, seed=4).at(0.5, 4, 53, 29).tokens, near.tokens)


def test_passkeys_stand_between_sentences_at_the_depth(english: Tokenizer) -> None:
    lexicon = lexicon_for(english)
    make = PasskeyQuestions(english, lexicon)
    for length, depth in ((make.least_length, 0.5), (127, 0.0), (509, 0.5), (509, 1.0)):
        questions = make.at(depth, length)
        assert questions.tokens.shape == (32, length)
        for row, answer in zip(questions.tokens.tolist(), questions.answers.tolist(), strict=True):
            text = english.decode(row[1:])
            assert text.endswith("What is the pass key? The pass key is")
            assert english.text_of(int(questions.candidates[answer])) == lexicon.keys[answer]
            assert text.count(f" The pass key is{lexicon.keys[answer]}. Remember it.") == 1
            before = text.partition(" The pass key is")[0]
            assert not before or before.endswith((".", "again"))
            place = len(english.encode([before])[0])
            assert abs(place - depth * (length - make.least_length)) <= 9  # half a sentence


def checkpoint_of(tokenizer: Tokenizer | None, trained_at: int | None = 53, **variant: object) -> Checkpoint:
    torch.manual_seed(0)
    n_vocab = tokenizer.n_vocab if tokenizer else 257
    model = GPTConfig(**{"n_layers": 2, "d_model": 24, "n_heads": 3, "n_vocab": n_vocab, **variant})
    training = TrainingState(5, 5, None, {"data.context_length": trained_at}, {}, {}) if trained_at else None
    return Checkpoint(model, GPT(model).state_dict(), tokenizer and tokenizer.json_text, training)


def named(checkpoint: Checkpoint, name: str = "m") -> Named:
    return {"name": name, "sha256": "0" * 64}, checkpoint


def run(checkpoints: list[Named], output: Path, **settings: object) -> tuple[str, list[RecallCurve]]:
    printed = StringIO()
    config = RecallConfig(**{"items": 11, "multiples": (1, 2, 4), **settings})
    curves = study(checkpoints, config, device=CPU, console=Console(file=printed, width=100), output=output)
    return printed.getvalue(), curves


def test_the_answer_is_the_likeliest_candidate() -> None:
    model = checkpoint_of(OWN).build().eval()
    questions = PairQuestions(OWN, SYMBOLS, seed=3).at(0.5, 4, 53, 37)
    with torch.inference_mode():
        likelihoods = model(torch.from_numpy(questions.tokens))[:, -1].log_softmax(dim=-1)
    expected = likelihoods[:, questions.candidates].argmax(dim=1).numpy()
    for batch_tokens in (1, 200, 9999):
        assert np.array_equal(answers_of(model, CPU, torch.float32, batch_tokens)(questions), expected)


def test_a_study_writes_its_table_picture_and_results(tmp_path: Path, english: Tokenizer) -> None:
    learned = checkpoint_of(OWN, positions="learned", n_ctx=106)
    printed, curves = run([named(learned), named(checkpoint_of(english))], tmp_path)
    assert [(curve.name, curve.test) for curve in curves] == [("m", "pairs"), ("m (2)", "pairs"), ("m (2)", "passkey")]
    assert "undefined" in printed
    assert "m did not learn (95 % at 53 tokens is the mark)" in printed
    tree = json.loads((tmp_path / "results.json").read_text())
    assert (tree["kind"], tree["protocol"]["items"]) == ("recall", 11)
    assert [curve["learned"] for curve in tree["curves"]] == [False] * 3
    assert tree["curves"][0]["lengths"][2] == {
        "context_length": 212,
        "depth": None,
        "pairs": 4,
        "items": 0,
        "chance": 0.25,
        "accuracy": None,
    }
    assert [cell["accuracy"]["value"] for cell in tree["curves"][1]["depths"]] == [
        cell.accuracy.value for cell in curves[1].depths
    ]
    assert (tmp_path / "recall.png").stat().st_size > 5000
    markdown = (tmp_path / "results.md").read_text()
    assert "| 212 | 4 | undefined |" in markdown
    assert "## m (2): passkey" in markdown


@pytest.mark.parametrize(
    ("checkpoint", "settings", "said"),
    [
        (checkpoint_of(None), {}, "m holds no tokenizer: give tokenizer=FILE"),
        (checkpoint_of(OWN, None), {}, "m does not know its training context: give evaluation.trained_at=N"),
        (checkpoint_of(OWN, 8), {}, "4 pairs and a query need 11 tokens, and the shortest text has 8"),
        (checkpoint_of(Tokenizer.train(sentences(9, 200, 5), 300)), {}, "m: only 0 of the common words"),
        (checkpoint_of(OWN), {"loads": (33,)}, "evaluation.loads: 33 pairs are more than the 32 keys there are"),
        (checkpoint_of(OWN), {"depths": ()}, "evaluation.depths is empty"),
        (checkpoint_of(OWN), {"multiples": (2, 2)}, r"evaluation.multiples=\[2, 2\] names one twice"),
    ],
)
def test_what_can_not_be_asked_is_refused(
    checkpoint: Checkpoint, settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        run([named(checkpoint)], tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_results_of_recall_stand_in_no_ones_way(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("total_steps=3", "schedule.warmup_steps=1", "validate_every=3", "reading.multiples=[1]")
    for seed in (0, 1):
        folder = tmp_path / f"runs/seed-{seed}"
        run_here([*SMALL, "data=local", f"data.files={text}", *few, f"seed={seed}", f"output={folder}"])
        asks = ("evaluation=recall", "evaluation.items=3", "evaluation.multiples=[1]", "evaluation.pairs=1")
        words = ("tokenizer=null", "evaluation.loads=[]", f"output={folder}/recall", f"checkpoint={folder}")
        tokenizer = tmp_path / "bytes.json"
        tokenizer.write_text(OWN.json_text)
        evaluate_here(*asks, *words[1:], f"tokenizer={tokenizer}", "hardware=cpu")
    before = capsys.readouterr().out
    assert "associative recall" in before
    frame = results.lengths(tmp_path / "runs")
    assert set(frame["run"]) == {"seed-0", "seed-1"}
    with pytest.warns(MissingResultsWarning, match="none of these 2 runs has a score on a task"):
        assert results.tasks(tmp_path / "runs").empty
    main(["compare", str(tmp_path / "runs/seed-0"), str(tmp_path / "runs/seed-1")])
    main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report")])
    report = (tmp_path / "report/report.md").read_text()
    assert "damaged" not in report
    assert "## Recall among 1 pairs" in report
    recalled = results.recall(tmp_path / "runs")
    assert set(recalled["run"]) == {"seed-0", "seed-1"}
    assert set(recalled["positions"]) == {"alibi"}
