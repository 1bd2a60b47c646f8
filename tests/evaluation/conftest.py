"""Shared by the tests of studies: a tokenizer, and text in long documents."""

import json

import pytest

from gptstar.data.tokenizer import Tokenizer
from support.text import sentences


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(sentences(9, 200, 5), 300)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("books") / "books.jsonl"
    path.write_text("".join(json.dumps({"text": each}) + "\n" for each in sentences(12, 400, 7)))
    return str(path)
