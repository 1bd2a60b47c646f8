"""Check for slowdowns: measure again, and compare with the ratios in the last commit.

    python benchmarks/check.py                          a quick run, 4 minutes; exits with 1 and names slowdowns
    python benchmarks/check.py benchmarks/results.json  what `make bench` has just written
    python benchmarks/check.py --only decoding          some of it

A ratio fell if it is lower by more than both intervals and a margin explain. Only ratios are compared, because seconds
depend on the machine and the hour.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from gptstar.errors import DataError, Refusal
from run import PUBLISHED, SECONDS, TRIAL, parser, plan, run
from speed import report, store
from speed.comparison import Claim
from speed.engine import SKIPPED
from speed.figures import Figure, figure
from speed.report import Table
from speed.worker import WorkerError

MARGIN = 0.03
"""The relative fall that is tolerated beyond the intervals; two runs differ more than the rounds of one run."""

GROWTH_MARGIN = 0.2
"""The tolerated rise of the exponent with which memory grows; allocators reserve memory in large pieces."""


@dataclass(frozen=True)
class Compared:
    """A claim with its figures before and now.

    Attributes:
        comparison: the name of the comparison.
        now: the present figure; None if there is none.
        excused: whether a missing figure is not our fault: a peer could not be measured, or no time was left.
    """

    comparison: str
    claim: Claim
    before: Figure
    now: Figure | None
    excused: bool

    @property
    def fell(self) -> bool:
        """Whether the figure is worse by more than chance and the margin explain.

        The intervals are treated as those of normally distributed log ratios, whose half-widths add up as squares.
        """
        if self.now is None:
            return not self.excused
        power = self.claim.quantity == "growth"
        scale = float if power else math.log
        worse = scale(self.before.value) - scale(self.now.value)
        spread = math.hypot(*((scale(each.high) - scale(each.low)) / 2 for each in (self.before, self.now)))
        return (-worse if self.claim.less_is_better else worse) > spread + (GROWTH_MARGIN if power else MARGIN)


def compare(old: store.Results, new: store.Results, device: str) -> Iterator[Compared]:
    """Yield every claim that was measured before, of the comparisons that were run again."""
    before = {comparison.name: outcome for comparison, outcome in report.pairs(old, device)}
    for comparison, outcome in report.pairs(new, device):
        for claim in comparison.claims if comparison.name in before else ():
            if claim.quantity == "first":  # seconds, which are not comparable between machines
                continue
            if (was := figure(claim, before[comparison.name], comparison)) is not None:
                of, peer = (outcome.entries.get(name or "") for name in (claim.of, claim.over))
                excused = (peer is not None and not peer.seconds) or (of is not None and of.failure == SKIPPED)
                yield Compared(comparison.name, claim, was, figure(claim, outcome, comparison), excused)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure or read the present figures, compare them, and exit with 1 if something fell."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("new", type=Path, nargs="?", help="a results.json (default: measure now)")
    options.add_argument("--against", type=Path, help="a results.json (default: benchmarks/results.json as committed)")
    options.add_argument("--only", metavar="NAMES", help="as for run.py")
    options.add_argument("--rounds", type=int, help="as for run.py")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given, console = options.parse_args(arguments), Console()
    try:
        old = store.load(given.against) if given.against else store.committed(PUBLISHED / store.FILE)
        if given.new is None:
            words = ["--quick", "--device", given.device, *(["--only", given.only] if given.only else [])]
            words += ["--rounds", str(given.rounds)] if given.rounds else []
            chosen = plan(parser().parse_args(words))
            new = run(chosen, device=given.device, folder=TRIAL, console=console, seconds=SECONDS[given.device])
        elif given.new.exists():
            new = store.load(given.new)
        else:
            raise DataError(f"{given.new} does not exist: leave it out to measure now, or run `make bench`")
        claims = list(compare(old, new, given.device))
        if not claims:
            raise DataError(f"nothing to compare on {given.device}: the two records share no comparison")
    except (Refusal, WorkerError) as error:
        sys.exit(f"error: {error}")
    rows = [
        (each.comparison, each.claim.name, str(each.before), str(each.now or "–"), "fell" if each.fell else "")
        for each in claims
    ]
    console.print(Table(("comparison", "figure", "committed", "now", ""), rows, left=2).terminal("ratios"))
    fell = [each for each in claims if each.fell]
    fallen = [f"{each.comparison}: {each.claim.name}, {each.before} → {each.now or '–'}" for each in fell]
    if fallen:
        sys.exit("fell:\n" + "\n".join(fallen))


if __name__ == "__main__":
    main()
