"""Recall texts are what they say: an independent reader answers every query; prepared and masked like any text."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from gptstar.data.config import CorpusConfig, DataConfig
from gptstar.data.order.training_data import training_data, validation_data
from gptstar.data.order.windows import inputs_of
from gptstar.data.preparation.packing import CorpusPacker
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.text.recall import ENGLISH, SYMBOLS, Lexicon, Recall
from gptstar.errors import ConfigError
from support.runs import SMALL, assert_goes_on_bitwise, run_here
from support.text import QUIET, same, sentences


def read(words: list[str], lexicon: Lexicon) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The pairs of a text, and its queries with their answers, by a reader that knows the form alone."""
    pairs, queries, place = {}, [], 0
    while place < len(words):
        if words[place] == lexicon.mark:
            queries.append((words[place + 1], words[place + 2]))
            place += 3
        elif words[place] in lexicon.keys:
            assert not queries, "a pair after a query"
            assert words[place] not in pairs
            pairs[words[place]] = words[place + 1]
            place += 2
        else:
            assert words[place] in lexicon.filler
            place += 1
    return pairs, queries


@pytest.mark.parametrize(("lexicon", "length"), [(SYMBOLS, 43), (SYMBOLS, 61), (ENGLISH, 301)])
def test_every_query_has_the_value_of_its_key(lexicon: Lexicon, length: int) -> None:
    source = Recall(length, 97, words="symbols" if lexicon is SYMBOLS else "english", seed=5)
    n_pairs = set()
    for text in source.documents(0):
        words = list(text) if lexicon is SYMBOLS else [f" {word}" for word in text.split()]
        assert "".join(words) == text
        assert len(words) == length - 1
        pairs, queries = read(words, lexicon)
        assert set(pairs.values()) <= set(lexicon.values)
        assert len(set(pairs.values())) == len(pairs)
        assert dict(queries) == pairs
        assert len(queries) == len(pairs)
        n_pairs.add(len(pairs))
    assert n_pairs == {4, 5, 6, 7, 8}


def test_so_many_queries_as_asked_for_are_for_pairs_at_random() -> None:
    times = set()
    for text in Recall(length=61, n_documents=31, queries=12).documents(0):
        pairs, queries = read(list(text), SYMBOLS)
        assert len(queries) == 12
        assert all(pairs[key] == value for key, value in queries)
        times |= {len(set(queries)) for _ in pairs}
    assert len(times) > 2


def test_words_are_all_different_and_32_are_keys_and_32_values() -> None:
    for lexicon in (SYMBOLS, ENGLISH):
        assert len(lexicon.keys) == len(lexicon.values) == 32
        words = (*lexicon.keys, *lexicon.values, *lexicon.filler, lexicon.mark)
        assert len(set(words)) == len(words)


def test_a_text_is_a_function_of_its_seed_and_number() -> None:
    source = Recall(length=53, n_documents=31, seed=3)
    texts = list(source.documents(0))
    assert texts == list(source.documents(0))
    assert texts[:7] == list(Recall(length=53, n_documents=7, seed=3).documents(0))
    assert not set(texts) & set(Recall(length=53, n_documents=31, seed=4).documents(0))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"length": 40}, "length=40 has no room for .*most_pairs=8.* give 41 or more"),
        ({"most_pairs": 33, "length": 999}, "most_pairs=33 is not between"),
        ({"fewest_pairs": 9}, "most_pairs=8 is not between .*fewest_pairs=9"),
    ],
)
def test_texts_that_can_not_be_are_refused(keys: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recall(**keys)


def configured(tmp_path: Path, name: str = "shards", **changes: object) -> DataConfig:
    corpora = {"recall": CorpusConfig(source=Recall(length=47, n_documents=211))}
    sizes = {"context_length": 47, "block_tokens": 47, "validation_tokens": 999, "workers": 1, "clean": "none"}
    shards = str(tmp_path / name)
    given = {"source": "corpora", "corpora": corpora, "windows": "documents", "query_mark": "?", "shards": shards}
    return DataConfig(**{**given, **sizes, **changes})


def test_a_document_is_a_window_and_its_answers_are_the_targets(tmp_path: Path) -> None:
    config = configured(tmp_path)
    folder = ensure_prepared(config, 257, QUIET)
    tokenizer, texts = folder.tokenizer, set(config.corpora["recall"].source.documents(0))
    windows, _, blocks = training_data(folder, config)
    held_out = validation_data(folder, config)["recall"]
    assert blocks == {"recall": windows.n_blocks}
    assert windows.n_blocks + held_out.n_blocks == 211
    seen = set()
    for each in (windows, held_out):
        rows = each.__getitems__(range(len(each)))
        inputs, targets = inputs_of(rows[:, :-1]), rows[:, 1:]
        assert inputs.min() >= 0
        pairs_of_rows = zip(inputs.tolist(), targets.tolist(), strict=True)
        for row_inputs, row_targets in islice(pairs_of_rows, 1, None):  # no end-of-text comes before the first
            assert row_inputs[0] == tokenizer.end_of_text
            words = [tokenizer.text_of(token) for token in row_inputs[1:]]
            seen.add("".join(words))
            _, queries = read(words, SYMBOLS)
            answers = [tokenizer.text_of(target) for target in row_targets if target >= 0]
            assert answers == [value for _, value in queries]
    assert seen <= texts
    assert len(seen) == 209
    plain = training_data(folder, configured(tmp_path, query_mark=None))[0]
    everything = plain.__getitems__(range(len(plain)))
    torch.testing.assert_close(inputs_of(windows.__getitems__(range(len(windows)))), everything.clamp(min=0))


def test_a_mark_of_several_tokens_is_refused(tmp_path: Path) -> None:
    folder = ensure_prepared(configured(tmp_path), 257, QUIET)
    with pytest.raises(ConfigError, match="query_mark='ab' is 2 tokens"):
        training_data(folder, configured(tmp_path, query_mark="ab"))


def test_a_mark_that_does_not_occur_is_refused(tmp_path: Path) -> None:
    folder = ensure_prepared(configured(tmp_path), 257, QUIET)
    with pytest.raises(
        ConfigError, match=r"data\.query_mark='~' does not occur in the text of .*, so there would be no"
    ):
        training_data(folder, configured(tmp_path, query_mark="~"))
    assert training_data(folder, configured(tmp_path, query_mark="a"))[0].has_answers


def test_a_step_without_an_answer_says_so(tmp_path: Path, refusal: Callable[..., str]) -> None:
    """Two documents of a hundred have a mark."""
    (tmp_path / "text").mkdir()
    texts = [" ".join(sentences(5, 40, number)) + "?" * (number in (50, 51)) for number in range(100)]
    (tmp_path / "text/a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = [*SMALL, "data=local", f"data.files={tmp_path}/text/a.jsonl", "data.query_mark='?'", "total_steps=9"]
    line = refusal(run_here, [*words, f"output={tmp_path / 'run'}"])
    assert "the loss is nan" in line
    assert "no answer to a query (data.query_mark) is in this step: raise batch_tokens" in line
    run_here([*words, f"output={tmp_path / 'skips'}", "on_nonfinite=skip"])


def test_an_interrupted_preparation_goes_on_to_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(ensure_prepared(configured(tmp_path, "whole"), 257, QUIET).folder)
    monkeypatch.setattr("gptstar.data.preparation.packing.COMMIT_SECONDS", 0.0)
    monkeypatch.setattr("gptstar.data.preparation.encoding.TASK_CHARACTERS", 400)
    take, taken = CorpusPacker._take, []

    def killed(self: CorpusPacker, *args: object) -> None:
        taken.append(args)
        if len(taken) == 101:
            raise KeyboardInterrupt
        take(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(CorpusPacker, "_take", killed)
        with pytest.raises(KeyboardInterrupt):
            ensure_prepared(configured(tmp_path, "stopped"), 257, QUIET)
    resumed = Path(ensure_prepared(configured(tmp_path, "stopped"), 257, QUIET).folder)
    assert same(whole, resumed)


def test_a_run_that_stops_and_goes_on_is_the_one_that_did_not(tmp_path: Path) -> None:
    def overrides(*more: str, output: str = "run") -> list[str]:
        small = [word for word in SMALL if not word.startswith(("model.n_vocab", "data."))]
        sizes = ("data.corpora.recall.source.n_documents=97", "model.n_vocab=257")
        return [*small, "data=recall", *sizes, f"data.shards={tmp_path}/text", f"output={tmp_path / output}", *more]

    checkpoint = assert_goes_on_bitwise(overrides, tmp_path)
    assert checkpoint.training.settings["data.query_mark"] == "?"


def test_english_is_mixed_into_text_of_which_it_trains_the_tokenizer(text: str, tmp_path: Path) -> None:
    source = Recall(length=64, n_documents=64, words="english")
    config = DataConfig(
        source="local",
        files=text,
        corpora={"recall": CorpusConfig(source=source)},
        context_length=32,
        block_tokens=64,
        workers=1,
        shards=str(tmp_path / "mixed"),
    )
    folder = ensure_prepared(config, 700, QUIET)
    assert sorted(folder.corpora("train")) == ["alpha", "beta", "recall"]
    lengths = [len(tokens) for tokens in folder.tokenizer.encode([*ENGLISH.keys, *ENGLISH.values, ENGLISH.mark])]
    assert set(lengths) == {1}
