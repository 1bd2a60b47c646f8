"""Arrays in `.npy` files, whoever wrote them."""

from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np


def load_array(source: Path | IO[bytes], *, is_mapped: bool = False) -> np.ndarray:
    """Read an array, or map it into memory.

    Raises:
        OSError: the file can't be read.
        ValueError: it does not hold one array. numpy parses the header as Python, and lets that parser's errors out.
    """
    try:
        array = np.load(source, mmap_mode="r" if is_mapped else None)
    except (EOFError, SyntaxError, TokenError, OverflowError, MemoryError) as error:
        raise ValueError(f"not an array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays")
    return array
