"""Progress where there is no terminal."""

import io

import pytest
from rich.console import Console

from gptstar.terminal import Tenths


@pytest.mark.parametrize(
    ("seconds", "is_terminal", "lines"), [(4, False, 3), (1, False, 1), (0.1, False, 0), (4, True, 0)]
)
def test_long_work_has_a_line_at_tenths(
    seconds: float, is_terminal: bool, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    out = io.StringIO()
    tenths = Tenths(Console(file=out, force_terminal=is_terminal), "reading", 10)
    for _ in range(10):
        now += seconds
        tenths.advance(1)
    assert len(out.getvalue().splitlines()) == lines
    assert (out.getvalue() == "reading: 100 %\n") == (lines == 1)
