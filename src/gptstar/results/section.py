"""One section of a report, in whatever form it is printed."""

from dataclasses import dataclass

import pandas as pd

from gptstar.plots.style import Figure


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; each of text, points, table, picture and commands may be missing.

    Attributes:
        points: sentences that are listed.
        is_long: shown only when a reader opens it.
    """

    heading: str
    text: str = ""
    points: tuple[str, ...] = ()
    table: pd.DataFrame | None = None
    picture: Figure | None = None
    commands: tuple[str, ...] = ()
    is_long: bool = False
