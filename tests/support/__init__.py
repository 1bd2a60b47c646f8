"""What several tests share and is not a fixture."""

from pathlib import Path

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("graph", "runs", "scoring", "text")))

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
