"""A picture of prepared text: the lengths of its documents."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gptstar.data.storage.documents import Lengths
from gptstar.errors import DataError

COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000"
"""Okabe and Ito's palette without yellow, which colour-blind readers can distinguish."""
DASHES = "-", "--", ":", "-."
"""Line styles, for prints without colour."""


def plot_document_lengths(lengths: Mapping[str, Lengths], path: Path) -> None:
    """Draw a histogram outline of document lengths per corpus; raise DataError if the file can't be written."""
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set(
        title="document lengths",
        xlabel="tokens in a document, end-of-text included",
        ylabel="share of the documents, by doubling",
    )
    axes.set_xscale("log")
    colours, dashes = cycle(COLOURS), cycle(DASHES)
    for corpus, those in lengths.items():
        edges, shares = outline(those)
        label = f"{corpus}: median {those.quantile(0.5):,} of {those.counts.sum():,}"
        axes.stairs(shares, edges, color=next(colours), linestyle=next(dashes), linewidth=1.6, label=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    if lengths:
        # Put it below, clear of the outlines. Don't parse corpus names as maths.
        legend = figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8, handlelength=3)
        for text in legend.get_texts():
            text.set_parse_math(False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise DataError(f"can't draw {path}: {getattr(error, 'strerror', None) or error}") from error


def outline(lengths: Lengths) -> tuple[np.ndarray, np.ndarray]:
    """Compute a histogram whose bins go from one power of two to the next.

    Returns:
        Edges, `(bin + 1,)`, and the share of the documents in each bin, `(bin,)`.
    """
    least, most = (int(length).bit_length() for length in lengths.values[[0, -1]])
    edges = 2 ** np.arange(least - 1, most + 1)
    counts, _ = np.histogram(lengths.values, edges, weights=lengths.counts)
    return edges, counts / lengths.counts.sum()
