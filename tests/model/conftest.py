from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import flex_attention


@pytest.fixture
def trains_flex_attention(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """FlexAttention trains on a CPU by its definition in PyTorch, and nothing compiled before is used."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
