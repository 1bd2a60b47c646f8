"""Files and values that were changed at random: trees, bytes, JSON; and what a reader may do with them."""

import copy
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptstar.errors import Refusal

SECONDS = 60
"""Time after which a reader counts as hung."""

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 3.5, 10**9, 10**18, 2**63, 10**30, 10**5000, float("nan"), float("inf")),
    *("", "alibi2", "swish", "10", "\x00", "x" * 10_000, [], [3], {}, {"kind": "rotary"}, {"kind": 3}, {"": None}),
]
ODD_JSON = [odd for odd in ODD if odd != 10**5000]
"""Values that Python's JSON writes."""


def changed(tree: Any, draw: random.Random, odd: list[Any]) -> Any:
    """A copy of a tree with one or two values, keys or branches changed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 2])):
        here = tree
        while True:
            key = draw.choice(list(here) if isinstance(here, dict) else range(len(here)))
            below = here[key]
            if not (isinstance(below, dict | list) and below and draw.random() < 0.85):
                break
            here = below
        match draw.randrange(10):
            case 0:
                del here[key]
            case 1 if isinstance(here, dict):
                here[draw.choice(["new", "n_ctx", "n_layers"])] = copy.deepcopy(draw.choice(odd))
            case 2 if isinstance(below, int):
                here[key] = below + draw.choice([-1, 1])
            case _:
                here[key] = copy.deepcopy(draw.choice(odd))
        if not tree:
            break
    return tree


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes of which some are flipped, cut off, doubled or put elsewhere."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 3, 20])):
        place = draw.choice([draw.randrange(len(changed)), -1 - draw.randrange(min(400, len(changed)))])
        match draw.randrange(6):
            case 0:
                changed = changed[: place % len(changed)] or bytearray(b"P")
            case 1:
                changed[place:place] = draw.randbytes(draw.randrange(1, 9))
            case _:
                changed[place] = draw.randrange(256)
    return bytes(changed)


def change_json(path: Path, draw: random.Random) -> None:
    """Change a JSON file: a value in it, its bytes, or all of it."""
    if draw.random() < 0.05:
        path.write_text("[" * 100_000)
    elif draw.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), draw))
    else:
        path.write_text(json.dumps(changed(json.loads(path.read_text()), draw, ODD_JSON)))


class Hang(BaseException):
    """Raised by the alarm; nothing catches it."""


def refusal_of(what: str, action: Callable[[], object]) -> str:
    """Run something that may refuse, and may do nothing else: return its one line, or nothing.

    Raises:
        AssertionError: another exception, a hang, or a message that is not a line.
    """

    def stop(*_: object) -> None:
        raise Hang(f"it did not end in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        action()
    except Refusal as refusal:
        said = str(refusal)
    except BaseException as error:
        raise AssertionError(f"{what}: {error!r}") from error
    else:
        said = ""
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert "\n" not in said, f"{what}: {said:.300}"
    assert len(said) < 3000, f"{what}: {said:.300}"
    return said
