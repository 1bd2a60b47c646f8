"""The folder for the compiled kernels of a run."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def empty_compile_cache() -> Iterator[None]:
    """Let processes that start within it compile into a folder that is empty at first.

    So the first step of a graph takes as long as it takes a user once, whatever ran before.
    """
    names = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
    before = {name: os.environ.pop(name, None) for name in names}
    with tempfile.TemporaryDirectory(prefix="speed-compiled-", ignore_cleanup_errors=True) as folder:
        os.environ |= {name: str(Path(folder, name.lower())) for name in names}
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value
