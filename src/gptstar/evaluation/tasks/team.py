"""Work on requests, shared by the ranks of a job: rank 0 runs the harness, and all of them compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from gptstar.errors import Refusal
from gptstar.ranks import PATIENCE, Ranks

OnResults = Callable[[Mapping[int, Any]], None]
"""Called with results by number of the request, as they come."""


def no_progress(_: Mapping[int, Any]) -> None:
    """Report no progress."""


class Team:
    """The ranks of a job, or one process by itself.

    Rank 0 hands out requests and gets all results; the others `serve` until it dismisses them. So tasks, their files
    and any cache exist on rank 0 alone, and there may be fewer items than ranks.
    """

    def __init__(self, work: Callable[[Sequence[Any], int, int, OnResults], dict[int, Any]]) -> None:
        """Join the team. `work` does a rank's share: requests, rank, number of ranks, callback → results by number."""
        self._work, self.ranks = work, Ranks()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self.ranks = Ranks(dist.get_rank(), dist.get_world_size(), group=group)
        self._is_serving = self.ranks.world_size > 1

    def all_results(self, requests: Sequence[Any], on_results: OnResults = no_progress) -> list[Any]:
        """On rank 0: have all requests done, and return their results in order.

        Raises:
            Refusal: what any rank refused.
            RuntimeError: what went wrong on another rank.
        """
        if self.ranks.world_size == 1:
            results = self._work(requests, 0, 1, on_results)
        else:
            dist.broadcast_object_list([list(requests)], src=0, group=self.ranks.group)
            results = self._together(requests, on_results)
        return [results[number] for number in range(len(requests))]

    def serve(self) -> None:
        """On the other ranks: work until dismissed."""
        while True:
            handed: list[Any] = [None]
            dist.broadcast_object_list(handed, src=0, group=self.ranks.group)
            if handed[0] is None:
                return
            self._together(handed[0], no_progress)

    def dismiss(self) -> None:
        """On all ranks, at the end: rank 0 lets the others go, unless what went wrong has ended their work already."""
        if self._is_serving and self.ranks.rank == 0:
            dist.broadcast_object_list([None], src=0, group=self.ranks.group)
        if self.ranks.group is not None:
            dist.destroy_process_group(self.ranks.group)
        self._is_serving, self.ranks = False, Ranks(self.ranks.rank)

    def _together(self, requests: Sequence[Any], on_results: OnResults) -> dict[int, Any]:
        try:
            share: Any = self._work(requests, self.ranks.rank, self.ranks.world_size, on_results)
        except Exception as error:  # whatever it is, the others have to hear of it rather than wait
            share = error
        shares = self.ranks.gathered(share)
        self._is_serving = not any(isinstance(each, Exception) for each in shares)
        for rank, each in enumerate(shares):
            if isinstance(each, Refusal):
                raise each
            if isinstance(each, Exception):
                raise RuntimeError(f"rank {rank}: {each!r}") from each
        return {number: result for each in shares for number, result in each.items()}
