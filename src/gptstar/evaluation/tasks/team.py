"""Work on requests, shared by the ranks of a job: rank 0 runs the harness, and all of them compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch.distributed as dist

from gptstar.errors import Refusal
from gptstar.ranks import PATIENCE

Request = TypeVar("Request")
Result = TypeVar("Result")
Value = TypeVar("Value")
Settled = Callable[[Mapping[int, Any]], None]
"""Called with results by number of the request, as they come."""


def no_progress(_: Mapping[int, Any]) -> None:
    """Report no progress."""


class Team(Generic[Request, Result]):
    """The ranks of a job, or one process by itself.

    Rank 0 hands out requests and gets all results; the others `serve` until it dismisses them. So tasks, their files
    and any cache exist on rank 0 alone, and there may be fewer items than ranks.
    """

    def __init__(self, work: Callable[[Sequence[Request], int, int, Settled], dict[int, Result]]) -> None:
        """Join the team.

        Args:
            work: does the share of a rank: requests, rank, number of ranks, progress callback → results by number.
        """
        self._work = work
        self._alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        self._group = None if self._alone else dist.new_group(backend="gloo", timeout=PATIENCE)
        self._over = self._alone
        self.rank = 0 if self._alone else dist.get_rank()

    def all_results(self, requests: Sequence[Request], settled: Settled = no_progress) -> list[Result]:
        """On rank 0: have all requests done, and return their results in order.

        Raises:
            Refusal: what any rank refused.
            RuntimeError: what went wrong on another rank.
        """
        if self._alone:
            found = self._work(requests, 0, 1, settled)
        else:
            dist.broadcast_object_list([list(requests)], src=0, group=self._group)
            found = self._together(requests, settled)
        return [found[number] for number in range(len(requests))]

    def agree(self, value: Value, choose: Callable[[Sequence[Value]], Value]) -> Value:
        """On all ranks: return what `choose` makes of the values of all ranks."""
        if self._alone:
            return value
        values: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return choose(values)

    def serve(self) -> None:
        """On the other ranks: work until dismissed."""
        while True:
            handed: list[Any] = [None]
            dist.broadcast_object_list(handed, src=0, group=self._group)
            if handed[0] is None:
                return
            self._together(handed[0], no_progress)

    def dismiss(self) -> None:
        """On all ranks, at the end: rank 0 lets the others go, unless what went wrong has ended their work already."""
        if not self._over and self.rank == 0:
            dist.broadcast_object_list([None], src=0, group=self._group)
        if self._group is not None:
            dist.destroy_process_group(self._group)
        self._over, self._group = True, None

    def _together(self, requests: Sequence[Request], settled: Settled) -> dict[int, Result]:
        world = dist.get_world_size()
        try:
            share: dict[int, Result] | Exception = self._work(requests, self.rank, world, settled)
        except Exception as error:  # whatever it is, the others have to hear of it rather than wait
            share = error
        shares: list[Any] = [None] * world
        dist.all_gather_object(shares, share, group=self._group)
        self._over = any(isinstance(each, Exception) for each in shares)
        for rank, each in enumerate(shares):
            if isinstance(each, Refusal):
                raise each
            if isinstance(each, Exception):
                raise RuntimeError(f"rank {rank}: {each!r}") from each
        return {number: result for each in shares for number, result in each.items()}
