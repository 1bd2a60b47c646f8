"""Reading of arrays from `.npy` files, which may be damaged or not hold an array."""

from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np


def load_array(source: Path | IO[bytes], *, is_mapped: bool = False) -> np.ndarray:
    """Read an array, or map it into memory.

    Raises:
        OSError: the file can't be read.
        ValueError: the file does not hold one array, whatever error numpy raises for it.
    """
    try:
        array = np.load(source, mmap_mode="r" if is_mapped else None)
    except (EOFError, SyntaxError, TokenError, OverflowError, MemoryError) as error:
        raise ValueError(f"not an array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError("an archive of arrays")
    return array
