import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from gptstar.data.tokenizer import END_OF_TEXT, Tokenizer
from gptstar.errors import DataError
from gptstar.inference.generate import TextStream
from support.text import sentences


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(sentences(20, 100, seed=0), 300)


def test_gpt2s_tokens(shared: Path) -> None:
    gpt2 = Tokenizer.from_file(shared / "tokenizer/gpt2.json")
    assert (gpt2.n_vocab, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode(["Hello world"])[0].tolist() == [15496, 995]


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_text_survives_and_its_bytes_add_up(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode([text])[0]
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes[tokens].sum() == len(text.encode())


def test_a_special_token_in_text_is_text(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode([f"a{END_OF_TEXT}b"])[0]
    assert tokenizer.end_of_text not in tokens
    assert tokenizer.decode(tokens) == f"a{END_OF_TEXT}b"
    assert tokenizer.token_bytes[tokenizer.end_of_text] == 0


def test_training_is_repeatable_and_the_json_is_all(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train(sentences(20, 100, seed=0), 300)
    assert again.fingerprint == tokenizer.fingerprint == Tokenizer(tokenizer.json_text).fingerprint
    assert Tokenizer.train(sentences(20, 100, seed=1), 300).fingerprint != tokenizer.fingerprint
    assert tokenizer.n_vocab == 300


def test_what_is_no_byte_level_tokenizer_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path, tree = tmp_path / "t.json", json.loads(tokenizer.json_text)
    with pytest.raises(DataError, match=r"t\.json: No such file"):
        Tokenizer.from_file(path)
    for content, says in (
        ("{", "not a `tokenizers` JSON"),
        ("[" * 100_000, "not a `tokenizers` JSON"),
        (json.dumps(tree | {"model": tree["model"] | {"continuing_subword_prefix": "##"}}), "prefix=##"),
        (tokenizer.json_text.replace(END_OF_TEXT, "<end>"), f"has no {END_OF_TEXT.replace('|', '.')} token"),
        (json.dumps(tree | {"decoder": None}), "not byte-level"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"t\.json: .*{says}"):
            Tokenizer.from_file(path)


def test_impossible_vocabularies_are_refused() -> None:
    with pytest.raises(DataError, match="too small for the 256 bytes"):
        Tokenizer.train(["a"], 200)
    with pytest.raises(DataError, match=r"too short for model.n_vocab=5000; it yields \d+ tokens"):
        Tokenizer.train(["a b c"], 5000)


CONTENTS = [
    "日本",
    "é",
    "ÿ",
    "éé",
    "Ã©",
    "Ġ",
    "th",
    "the",
    "привет",
    "مرحبا",
    "नमस्ते",
    "🙂",
    "<x>",
    "New York",
    "\n\n",
    " a",
]
FLAGS = st.fixed_dictionaries({flag: st.booleans() for flag in ("special", "lstrip", "rstrip", "single_word")})
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(st.sampled_from(CONTENTS), FLAGS), st.data())
@settings(deadline=None)
def test_with_added_tokens_every_path_agrees_with_the_library_or_loses_less(tokenizer: Tokenizer, added, data) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    library.add_tokens([tokenizers.AddedToken(content, **flags) for content, flags in added.items()])
    library.encode_special_tokens = True  # what looks like one in a text is text
    ours = Tokenizer(library.to_str())
    assert ours.n_vocab == library.get_vocab_size()
    assert ours.special_tokens.items() <= {n: t.content for n, t in library.get_added_tokens_decoder().items()}.items()
    assert Tokenizer(ours.json_text).fingerprint == ours.fingerprint
    assert ours.token_bytes.tolist() == [len(ours.bytes_of(token)) for token in range(ours.n_vocab)]

    text = "".join(data.draw(st.lists(st.sampled_from([*CONTENTS, END_OF_TEXT, " ", "\n", "a"]) | ANY_TEXT)))
    tokens = ours.encode([text])[0].tolist()
    assert not ours.special_tokens.keys() & set(tokens)
    assert ours.decode(tokens) == streamed(ours, tokens) == text
    assert ours.token_bytes[tokens].sum() == len(text.encode())
    theirs = library.encode(text, add_special_tokens=False).ids
    assert tokens == theirs or library.decode(theirs, skip_special_tokens=False) != text

    tokens = data.draw(st.lists(st.integers(0, ours.n_vocab - 1).filter(ours.end_of_text.__ne__)))
    assert (
        ours.decode(tokens) == streamed(ours, tokens) == b"".join(map(ours.bytes_of, tokens)).decode(errors="replace")
    )
    if not (library.get_added_tokens_decoder().keys() - ours.special_tokens) & set(tokens):
        assert ours.decode(tokens) == library.decode(tokens, skip_special_tokens=True)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    stream = TextStream(tokenizer, ())
    return "".join(map(stream.add, tokens)) + stream.rest()


def test_an_added_token_has_the_bytes_of_its_text(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.json_text)
    tree["added_tokens"].append(dict(tree["added_tokens"][0], id=300, content="日本", special=False))
    added = Tokenizer(json.dumps(tree))
    assert added.token_bytes[300] == len(added.bytes_of(300)) == 6
    assert added.text_of(300) == "日本"
    assert added.text_of(added.end_of_text) == END_OF_TEXT


def test_end_of_text_is_special_even_if_the_file_does_not_say_so(tokenizer: Tokenizer) -> None:
    tree = json.loads(tokenizer.json_text)
    for entries in ([dict(tree["added_tokens"][0], special=False)], []):
        plain = Tokenizer(json.dumps(tree | {"added_tokens": entries}))
        text = f"a{END_OF_TEXT}b"
        tokens = plain.encode([text])[0]
        assert plain.end_of_text not in tokens
        assert plain.decode([*tokens, plain.end_of_text]) == text
        assert plain.token_bytes[plain.end_of_text] == 0


def test_added_tokens_are_not_cut(tokenizer: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(tokenizer.json_text)
    assert tokenizer.can_be_cut
    library.add_tokens(["New York"])
    assert not Tokenizer(library.to_str()).can_be_cut
