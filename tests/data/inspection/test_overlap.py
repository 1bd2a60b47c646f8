import io
import itertools
import json
import pickle
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gptstar.data.inspection import grams
from gptstar.data.inspection.benchmark_items import Benchmark
from gptstar.data.inspection.grams import GramIndex, Item, words
from gptstar.data.inspection.overlap import overlap_table, report
from gptstar.errors import DataError

THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"
OTHER = "red orange yellow green blue indigo violet black white grey brown pink gold silver"  # 14
SHORT = "one two three four five six seven eight nine ten eleven twelve"


def made_up(*items: tuple[str, ...], name: str = "made-up") -> Benchmark:
    return Benchmark(name, items)


def hits(index: GramIndex, text: str) -> set[Item]:
    """The items that share a gram with a whole document."""
    _, items = index.pairs(np.concatenate([np.zeros(0, dtype=np.int64), *index.find(text)]))
    return set(map(index.item, items.tolist()))


def naive(text: str) -> set[tuple[str, ...]]:
    runs = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return {tuple(runs[start : start + 13]) for start in range(len(runs) - 12)}


@pytest.mark.parametrize(
    "text",
    [
        f"{THIRTEEN} and more",
        f"after some others, {THIRTEEN}",
        f"before {THIRTEEN} after",
        THIRTEEN.replace("seven ", "seven\n\n"),
        THIRTEEN.upper(),
        "“One—two; three’ (four) five... six/seven_eight_ nine ten, eleven: twelve -- thirteen!”",
        THIRTEEN.replace("five", "ｆｉｖｅ").replace(" ", "\u3000"),
        f"{SHORT} {THIRTEEN}",
    ],
    ids=["start", "end", "middle", "line-break", "case", "punctuation", "full-width", "false-start"],
)
def test_thirteen_words_in_a_row_are_found(text: str) -> None:
    index = GramIndex([made_up((OTHER,), (f"{THIRTEEN} fourteen",))])
    assert hits(index, text) == {("made-up", 1)}
    assert index.shares_a_gram(text)


@pytest.mark.parametrize(
    "text",
    [
        SHORT,
        f"{SHORT} {SHORT}",
        THIRTEEN.replace("seven", "seven seven"),
        THIRTEEN.replace("seven", "7"),
        THIRTEEN.replace("six seven", "seven six"),
        "",
        "-" * 99,
    ],
    ids=["twelve", "twelve-twice", "one-more-inside", "another-word", "another-order", "empty", "no-words"],
)
def test_less_is_not(text: str) -> None:
    index = GramIndex([made_up((THIRTEEN,), (SHORT,))])
    assert hits(index, text) == set()
    assert not index.shares_a_gram(text)


def test_no_run_goes_from_one_text_of_an_item_to_the_next() -> None:
    index = GramIndex([made_up((SHORT, "thirteen fourteen"), ("thirteen",))])
    assert index.grams.tolist() == [0, 0]
    assert not index.shares_a_gram(f"{SHORT} thirteen fourteen")


pieces = st.sampled_from(["a", "b", "B", "é", "e\u0301", "ß", "ss", "ﬁ", "fi", "Σ", "日", "İ", "_", "’", "…", "-", "7"])
gaps = st.sampled_from([" ", " ", " ", "\n", "\xa0", "", "’", "—"])
texts = st.lists(st.tuples(st.sampled_from("aab") | pieces, gaps).map("".join), max_size=60).map("".join)


@pytest.mark.slow
@given(st.lists(st.tuples(texts, texts), max_size=3), texts, st.integers(1, 40))
@settings(deadline=None, max_examples=600)
def test_it_finds_what_a_set_of_word_runs_finds(items: list[tuple[str, str]], text: str, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grams, "CHUNK_CHARACTERS", chunk)
        index = GramIndex([made_up(*items)])
        expected = {("made-up", n) for n, item in enumerate(items) if any(naive(part) & naive(text) for part in item)}
        assert hits(index, text) == expected
        assert index.shares_a_gram(text) == bool(expected)
        assert index.grams.tolist() == [len(naive(first) | naive(second)) for first, second in items]


def test_nothing_is_missed_between_two_stretches_of_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    index = GramIndex([made_up((THIRTEEN,))])
    for chunk in range(1, len(THIRTEEN) + 9):
        monkeypatch.setattr(grams, "CHUNK_CHARACTERS", chunk)
        assert index.shares_a_gram(f"before {THIRTEEN} after")


def test_words_are_the_same_in_any_case() -> None:
    assert words("ΟΔΟΣ") == words("οδος") == words("οδοσ")
    assert words("STRASSE") == words("Straße")
    assert words("ﬁne ½ _Emphasis_ don’t") == ["fine", "1", "2", "emphasis", "don", "t"]


def test_the_same_words_in_another_order_are_no_hit() -> None:
    reverse = " ".join(reversed(THIRTEEN.split()))
    index = GramIndex([made_up((THIRTEEN,))])
    assert hits(index, reverse) == set()
    assert hits(index, THIRTEEN) == {("made-up", 0)}
    assert hits(GramIndex([made_up((THIRTEEN,), (reverse,))]), THIRTEEN) == {("made-up", 0)}


def test_it_survives_pickling() -> None:
    index = GramIndex([made_up((THIRTEEN,)), made_up((OTHER,), name="colours")])
    assert hits(index, OTHER) == {("colours", 0)}
    assert len(pickle.dumps(index)) < 4096
    assert hits(pickle.loads(pickle.dumps(index)), f"{OTHER}\n{THIRTEEN}") == {("colours", 0), ("made-up", 0)}


def test_two_benchmarks_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="share a name: a, a"):
        GramIndex([made_up((THIRTEEN,), name="a"), made_up((OTHER,), name="a")])


ROWS = {
    "lambada": ({"text": THIRTEEN}, [THIRTEEN]),
    "piqa": ({"goal": "Dry it", "sol1": "now", "sol2": "then", "label": 0}, ["Dry it now", "Dry it then"]),
    "winogrande": (
        {"sentence": "The _ fits the box.", "option1": "cup", "option2": "jug", "answer": "1"},
        ["The cup fits the box.", "The jug fits the box."],
    ),
    "hellaswag": (
        {"ind": 3, "ctx_a": "[header] How", "ctx_b": "", "ctx": "[header] How", "endings": ["to [step] a", "b"]},
        ["  How to   a", "  How b"],
    ),
    "wikitext": ({"page": " = Lobsters = \n a <unk> claw"}, [" = Lobsters = \n a ", " claw"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_an_items_texts_come_from_its_columns(name: str, tmp_path: Path) -> None:
    row, expected = ROWS[name]
    path = tmp_path / f"{name}.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    assert Benchmark.from_file(path) == Benchmark(name, (tuple(expected),) * 2)


@pytest.mark.parametrize(
    "line", ["{", "[]", "null", '{"question": "?"}', '{"text": 3}', '{"goal": "a", "sol1": "b"}', '{"endings": [""]}']
)
def test_what_is_no_benchmark_is_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"b\.jsonl, line 2 is not a benchmark item: .* columns: text \(LAMBADA\)"):
        Benchmark.from_file(path)


def test_a_benchmark_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.jsonl: No such file"):
        Benchmark.from_file(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=r"b\.jsonl: 'utf-8' codec"):
        Benchmark.from_file(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.jsonl is empty"):
        Benchmark.from_file(tmp_path / "b.jsonl")


def test_the_report_names_rows_and_places() -> None:
    page = f"{THIRTEEN} {OTHER}"  # 27 words, 15 grams
    index = GramIndex([made_up((SHORT,), (THIRTEEN,), (page,)), made_up((OTHER,), name="colours")])
    found = report({"a": iter(["nothing", THIRTEEN, page]), "b": iter([OTHER[4:]]), "c": iter([])}, index)
    assert json.loads(json.dumps(found)) == found
    made = found["made-up"]
    assert (made["items"], made["too_short"], made["dirty"]) == (3, [0], [1, 2])
    first, second = made["corpora"]["a"]
    assert first == {"row": 1, "grams": 1, "found": 1, "document": 1, "words": THIRTEEN, "share": 1.0}
    assert (second["row"], second["grams"], second["found"], second["document"]) == (2, 15, 15, 1)
    (in_b,) = made["corpora"]["b"]
    assert (in_b["row"], in_b["found"], in_b["share"], in_b["document"]) == (2, 1, 1 / 15, 0)
    assert made["corpora"]["c"] == []
    assert found["colours"]["dirty"] == [0]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(overlap_table(found))
    shown = console.export_text()
    line = next(line for line in shown.splitlines() if "made-up" in line and " b " in line)
    cells = re.split(r"  +", line.strip())
    assert cells[:7] == ["made-up", "b", "3", "2", "1", "50.0%", "6.7%"]
    assert cells[7].startswith("row 2, document 0: orange")


def test_real_benchmarks_in_real_text(shared: Path) -> None:
    files = sorted((shared / "benchmarks").glob("*.jsonl"))
    index = GramIndex([Benchmark.from_file(file) for file in files])
    with (shared / "corpora/philpapers/shard-00000.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        leviathan, republic = (json.loads(line)["text"] for line in lines)
    assert hits(index, leviathan) == hits(index, republic) == set()
    random = np.random.default_rng(3)
    offset = 0
    planted = set()
    middle = len(leviathan) // 2
    for name, n_items in index.benchmarks.items():
        row = int(random.choice(np.flatnonzero(index.grams[offset : offset + n_items])))
        offset += n_items
        benchmark = Benchmark.from_file(next(path for path in files if path.stem == name))
        runs = max((words(part) for part in benchmark.items[row]), key=len)
        leviathan = f"{leviathan[:middle]} {', '.join(runs).upper()}\n{leviathan[middle:]}"
        planted.add((name, row))
    grams = naive(leviathan)
    everything = itertools.chain.from_iterable(
        ((path.stem, row, parts) for row, parts in enumerate(Benchmark.from_file(path).items)) for path in files
    )
    expected = {(name, row) for name, row, parts in everything if any(naive(part) & grams for part in parts)}
    assert planted <= expected
    assert hits(index, leviathan) == expected
    in_piqa = report({"philpapers": [republic, leviathan]}, index)["piqa"]["corpora"]["philpapers"]
    assert {(hit["row"], hit["document"]) for hit in in_piqa} == {(row, 1) for name, row in expected if name == "piqa"}
