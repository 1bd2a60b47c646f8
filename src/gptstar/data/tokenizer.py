"""Byte-level BPE: trained, loaded, fingerprinted, and the bytes behind each token."""

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
    """Map each character that byte-level tokens are written in to its byte; Radford et al., "GPT-2", 2019.

    Those that can be seen stand for themselves, the others, in order, are moved up by 256.
    """
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    visible = {chr(byte): byte for byte in range(256) if chr(byte) in alphabet}
    others = [byte for byte in range(256) if chr(byte) not in alphabet]
    return visible | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTES = _byte_level_alphabet()


class Tokenizer:
    """A byte-level BPE in the `tokenizers` JSON form, GPT-2's included."""

    def __init__(self, json_text: str) -> None:
        """Read JSON text. Raises DataError unless it is a byte-level BPE with an end-of-text token.

        Added tokens are matched as the library does, except where text would be lost: none absorbs the white space
        beside it, none is matched under the number of a token of other bytes, and end-of-text is always special.
        """
        try:
            if prefix := json.loads(json_text)["model"].get("continuing_subword_prefix"):
                raise ValueError(f"continuing_subword_prefix={prefix}, where byte-level tokens have none")
            self._backend = tokenizers.Tokenizer.from_str(json_text)
        except BaseException as error:  # bare Exception for whatever the library can't parse, or a panic
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
            raise DataError(f"the tokenizer drops merges at random (dropout={self._backend.model.dropout}): remove it")
        self._backend.no_truncation()  # which many a published file asks for, for other ends
        self._backend.no_padding()
        if max(self._backend.get_vocab().values()) >= self._backend.get_vocab_size():
            raise DataError("the tokenizer's numbers have gaps, so they can't be rows of an embedding")
        if "ByteLevel" not in json.dumps(tree.get("decoder")):
            raise DataError(
                "the tokenizer is not byte-level (its decoder is not ByteLevel), so its tokens have no bytes"
            )

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.json`. Raises DataError, with its name, if it is missing or not such a tokenizer."""
        try:
            return cls(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"can't read the tokenizer {path}: {getattr(error, 'strerror', None) or error}") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], n_vocab: int) -> "Tokenizer":
        """Learn a byte-level BPE of `n_vocab` tokens, end-of-text included.

        Raises:
            DataError: `n_vocab` can't hold the 256 bytes, or the text is too short to fill it.
        """
        if n_vocab < 257:
            raise DataError(f"n_vocab={n_vocab} can't hold 256 bytes and {END_OF_TEXT}: use 257 or more")
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
                f"the text yields {backend.get_vocab_size():,} tokens, not model.n_vocab={n_vocab}: give a lower one, "
                "or more text"
            )
        return cls(backend.to_str())

    @property
    def json_text(self) -> str:
        """The whole tokenizer as JSON, which `Tokenizer(...)` reads back."""
        return self._backend.to_str()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the tokens, independent of how a version of the library writes it down."""
        tree = json.loads(self.json_text)
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in tree["model"]["merges"]]
        added = [[token[key] for key in ADDED] for token in tree["added_tokens"]]
        parts = [tree["model"]["vocab"], merges, tree["normalizer"], tree["pre_tokenizer"], added]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def n_vocab(self) -> int:
        """Number of tokens, special ones included."""
        return self._backend.get_vocab_size()

    @property
    def end_of_text(self) -> int:
        """The token between documents."""
        number = self._backend.token_to_id(END_OF_TEXT)
        assert number is not None  # checked when it was read
        return number

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """`(n_vocab,)`, int64: bytes of text behind each token; 0 for special tokens."""
        return np.asarray([len(piece) for piece in self._pieces], dtype=np.int64)

    def check_vocabulary(self, n_vocab: int, name: str) -> None:
        """Raise DataError, which calls the tokenizer `name`, if it has more tokens than a model has rows.

        Fewer are those of a model padded to a round number.
        """
        if self.n_vocab > n_vocab:
            raise DataError(
                f"{name} has {self.n_vocab:,} tokens, the model {n_vocab:,}: give the one it was trained with"
            )

    def text_of(self, token: int) -> str:
        """Show a token: its text, other bytes as hexadecimal, special tokens by name."""
        return self.bytes_of(token).decode("utf-8", "backslashreplace") or str(self._backend.id_to_token(token))

    def bytes_of(self, token: int) -> bytes:
        """Return the UTF-8 that a token stands for, which need not be whole characters; nothing for special tokens."""
        return self._pieces[token]

    @cached_property
    def _added(self) -> dict[int, tokenizers.AddedToken]:
        return self._backend.get_added_tokens_decoder()

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """The names of the tokens that stand for no text."""
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
        # Asking for it where there is nothing to take as text would cost half as much time again.
        self._backend.encode_special_tokens = self._backend.normalizer is not None or any(
            token.content in text for token in self._added.values() for text in texts
        )
        # UTF-8 can't hold halves of characters, which a command line may carry.
        whole = [text if text.isascii() else text.encode("utf-8", "replace").decode() for text in texts]
        encodings = self._backend.encode_batch_fast(whole, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int64) for encoding in encodings]

    @cached_property
    def can_be_cut(self) -> bool:
        """Whether text that is cut before white space, after a letter or digit, has the tokens of the whole."""
        if any(re.search(r"[0-9A-Za-z][ \n]", token.content) for token in self._added.values()):
            return False
        whole, *parts = self.encode(["one two\n3 \nfour", "one", " two", "\n3 \nfour"])
        return whole.tolist() == np.concatenate(parts).tolist()

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the text of tokens; special tokens are dropped."""
        return b"".join(map(self._pieces.__getitem__, tokens)).decode("utf-8", "replace")


def _bytes_behind(token: str) -> bytes:
    """Decode a token of the vocabulary as the library does: one that is not all of the alphabet stands for itself."""
    try:
        return bytes(map(BYTES.__getitem__, token))
    except KeyError:
        return token.encode()


def _written_by_text(tree: dict[str, Any]) -> set[str]:
    """Select those of a tokenizer's added tokens that text becomes without a match: bytes, and what merges make."""
    model, added = tree["model"], {token["content"] for token in tree.get("added_tokens", [])}
    known = {token for token in added if token in model["vocab"] and BYTES.keys() >= set(token)}
    merged = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"] if known}
    return {token for token in known if len(token) == 1 or token in merged}


def _lossless(added: list[dict[str, Any]], written: set[str]) -> list[dict[str, Any]]:
    """Change added tokens so that they lose no text; `written` are those that text becomes without a match."""
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
