"""Byte-level BPE tokenizers: training, loading, fingerprints, and the bytes of each token."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from gptstar.errors import DataError, in_one_line

END_OF_TEXT = "<|endoftext|>"
ADDED = "id", "content", "special", "normalized", "single_word", "lstrip", "rstrip"


def _byte_level_alphabet() -> dict[str, int]:
    """Map each character in which byte-level tokens are written to its byte (Radford et al., "GPT-2", 2019).

    Visible characters stand for themselves. The other bytes, in order, are the characters from 256 on.
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    visible = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return visible | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTES = _byte_level_alphabet()


class Tokenizer:
    """A byte-level BPE tokenizer in the `tokenizers` JSON format, such as GPT-2's."""

    def __init__(self, json_text: str) -> None:
        """Read JSON text; raise DataError unless it is a byte-level BPE with an end-of-text token.

        Added tokens are matched as in the library, except where text would be lost: they don't absorb the white space
        next to them, they are not matched if their number belongs to other bytes, and end-of-text is always special.
        """
        try:
            if prefix := json.loads(json_text)["model"].get("continuing_subword_prefix"):
                raise ValueError(f"continuing_subword_prefix={prefix}, which byte-level tokens don't have")
            self._backend = tokenizers.Tokenizer.from_str(json_text)
        except BaseException as error:  # the library raises a bare Exception, or panics
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataError(f"not a `tokenizers` JSON ({in_one_line(error)})") from error
        if self._backend.token_to_id(END_OF_TEXT) is None:
            raise DataError(f"the tokenizer has no {END_OF_TEXT} token, which separates documents")
        if not isinstance(self._backend.model, models.BPE):
            raise DataError(f"the tokenizer is a {type(self._backend.model).__name__}, not a byte-level BPE")
        tree = json.loads(json_text)
        self._written = _written_by_text(tree)
        if (added := _lossless(tree.get("added_tokens", []), self._written)) != tree.get("added_tokens", []):
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(tree | {"added_tokens": added}))
        if self._backend.model.dropout:
            raise DataError(
                f"the tokenizer drops merges at random (dropout={self._backend.model.dropout}): remove the dropout"
            )
        self._backend.no_truncation()  # many published files set it for other purposes
        self._backend.no_padding()
        if max(self._backend.get_vocab().values()) >= self._backend.get_vocab_size():
            raise DataError(
                "the tokenizer's numbers have gaps, so they can't index the rows of an embedding: use another tokenizer"
            )
        if "ByteLevel" not in json.dumps(tree.get("decoder")):
            raise DataError("the tokenizer is not byte-level (its decoder is not ByteLevel): use a byte-level BPE")

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`; raise DataError with its name if it is missing or not such a tokenizer."""
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"can't read the tokenizer {path}: {getattr(error, 'strerror', None) or error}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int) -> "Tokenizer":
        """Train a byte-level BPE of `n_vocab` tokens, including end-of-text.

        Raises:
            DataError: `n_vocab` is too small for the 256 bytes, or the text is too short for `n_vocab` tokens.
        """
        if n_vocab < 257:
            raise DataError(f"n_vocab={n_vocab} is too small for the 256 bytes and {END_OF_TEXT}: use 257 or more")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        if backend.get_vocab_size() != n_vocab:
            raise DataError(
                f"the text is too short for model.n_vocab={n_vocab}; it yields {backend.get_vocab_size():,} tokens: "
                "give a lower model.n_vocab, or more text"
            )
        return cls(backend.to_str())

    @property
    def json_text(self) -> str:
        """The whole tokenizer as JSON text, which `Tokenizer(...)` reads back."""
        return self._backend.to_str()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the tokens; the same for every version of the library."""
        tree = json.loads(self.json_text)
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in tree["model"]["merges"]]
        added = [[token[key] for key in ADDED] for token in tree["added_tokens"]]
        parts = [tree["model"]["vocab"], merges, tree["normalizer"], tree["pre_tokenizer"], added]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def n_vocab(self) -> int:
        """Number of tokens, including special tokens."""
        return self._backend.get_vocab_size()

    @property
    def end_of_text(self) -> int:
        """Number of the end-of-text token, which separates documents."""
        number = self._backend.token_to_id(END_OF_TEXT)
        assert number is not None  # checked in __init__
        return number

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Number of text bytes of each token, `(n_vocab,)`, int64; 0 for special tokens."""
        return np.asarray([len(piece) for piece in self._pieces], dtype=np.int64)

    def check_vocabulary(self, n_vocab: int, name: str) -> None:
        """Raise DataError if the tokenizer has more tokens than the model has embedding rows.

        Fewer tokens are fine: a model may be padded to a round number of rows. The error calls the tokenizer `name`.
        """
        if self.n_vocab > n_vocab:
            raise DataError(
                f"{name} has {self.n_vocab:,} tokens, the model {n_vocab:,}: give the tokenizer that the model was "
                "trained with"
            )

    def text_of(self, token: int) -> str:
        """Return a token as readable text: invalid UTF-8 as hexadecimal, special tokens by name."""
        return self.bytes_of(token).decode("utf-8", "backslashreplace") or str(self._backend.id_to_token(token))

    def bytes_of(self, token: int) -> bytes:
        """Return a token's UTF-8 bytes, which may be parts of characters; empty for special tokens."""
        return self._pieces[token]

    @cached_property
    def _added(self) -> dict[int, tokenizers.AddedToken]:
        return self._backend.get_added_tokens_decoder()

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """The names of the special tokens, which stand for no text, by number."""
        special = [(number, token.content) for number, token in self._added.items() if token.special]
        names = {number: name for number, name in special if name not in self._written}
        return names | {self.end_of_text: END_OF_TEXT}

    @cached_property
    def _pieces(self) -> list[bytes]:
        pieces = [b""] * self.n_vocab
        for token, number in self._backend.get_vocab().items():
            pieces[number] = _bytes_behind(token)
        for number, added in self._added.items():
            if not added.special:
                pieces[number] = added.content.encode()
        for number in self.special_tokens:
            pieces[number] = b""
        return pieces

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokenise each text, int64. Text that looks like a special token is encoded as text."""
        # Set only if needed: encoding takes half as much time again with it.
        self._backend.encode_special_tokens = self._backend.normalizer is not None or any(
            token.content in text for token in self._added.values() for text in texts
        )
        # A command line may contain lone surrogates, which UTF-8 can't represent.
        whole = [text if text.isascii() else text.encode("utf-8", "replace").decode() for text in texts]
        encodings = self._backend.encode_batch_fast(whole, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    @cached_property
    def can_be_cut(self) -> bool:
        """Return whether cutting a text before white space, after a letter or digit, leaves its tokens unchanged."""
        if any(re.search(r"[0-9A-Za-z][ \n]", token.content) for token in self._added.values()):
            return False
        whole, *parts = self.encode(["one two\n3 \nfour", "one", " two", "\n3 \nfour"])
        return whole.tolist() == np.concatenate(parts).tolist()

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return b"".join(map(self._pieces.__getitem__, tokens)).decode("utf-8", "replace")


def _bytes_behind(token: str) -> bytes:
    """Decode a token of the vocabulary; like the library, take a token with other characters literally."""
    try:
        return bytes(map(BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _written_by_text(tree: dict[str, Any]) -> set[str]:
    """Select the added tokens that also arise without matching: single bytes, and results of merges."""
    model, added = tree["model"], {token["content"] for token in tree.get("added_tokens", [])}
    known = {token for token in added if token in model["vocab"] and BYTES.keys() >= set(token)}
    merged = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"] if known}
    return {token for token in known if len(token) == 1 or token in merged}


def _lossless(added: list[dict[str, Any]], written: set[str]) -> list[dict[str, Any]]:
    """Change added tokens so that they lose no text; `written` are those that also arise without matching."""
    changed = []
    for token in added:
        content = token["content"]
        if content == END_OF_TEXT:
            changed.append(token | {"special": True})
        elif token["special"]:
            changed.append(token)
        elif content not in written or _bytes_behind(content) == content.encode():
            changed.append(token | {"lstrip": False, "rstrip": False})
    return changed
