"""The published models, and their addresses."""

from dataclasses import dataclass

_AUTHORS = "https://bfattoripublic.s3.ca-central-1.amazonaws.com/models"

TOKENIZER_URL = "https://huggingface.co/openai-community/gpt2/resolve/main/tokenizer.json"
"""The address of GPT-2's tokenizer, with which all models were trained."""

TOKENIZER_FINGERPRINT = "14f1018b1968753c313b62afdd21aef117f5f3bc1cf864799d9ba6caa77f1349"
"""The `Tokenizer.fingerprint` of GPT-2's tokenizer."""


@dataclass(frozen=True)
class File:
    """A published file; size in bytes and SHA-256 are None if the authors did not publish them."""

    url: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        weights: the file without optimizer state.
        full_state: the file with optimizer state, to continue training; None if it was not published.
        n_heads: number of heads; None if the file states it.
    """

    what: str
    weights: File
    full_state: File | None = None
    n_heads: int | None = None


MODELS = {
    "127": Published(
        "GPT-127*, 6 layers of 1,024, ALiBi",
        File(f"{_AUTHORS}/127_model_only.pth.tar"),
        File(f"{_AUTHORS}/127_complete_state.pth.tar"),
    ),
    "303": Published(
        "GPT-303*, 8 layers of 1,536, ALiBi",
        File(f"{_AUTHORS}/303_model_only.pth.tar"),
        File(f"{_AUTHORS}/303_complete_state.pth.tar"),
    ),
    "354": Published("GPT-2 medium's shape, trained as a baseline", File(f"{_AUTHORS}/GPT2_345.pth.tar"), n_heads=16),
}
"""The published models, by the name that `gptstar download` takes."""
