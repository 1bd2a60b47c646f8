"""Distribution of requests over the ranks of a job: rank 0 runs the harness, and all ranks compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from gptstar.errors import Refusal
from gptstar.ranks import PATIENCE, Ranks

OnResults = Callable[[Mapping[int, Any]], None]
"""A callback that receives results by index of the request, as they arrive."""


def no_progress(_: Mapping[int, Any]) -> None:
    """Ignore the results: a callback that reports no progress."""


class Team:
    """The ranks of a job, or a single process, working on the same requests.

    Rank 0 sends requests to all ranks and collects the results; the others `serve` until it dismisses them. So only
    rank 0 needs the tasks, their files and the cache, and there may be fewer items than ranks.
    """

    def __init__(self, work: Callable[[Sequence[Any], int, int, OnResults], dict[int, Any]]) -> None:
        """Join the team. `work` maps requests, rank, number of ranks and a callback to the rank's results by index."""
        self._work, self.ranks = work, Ranks()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=PATIENCE)
            self.ranks = Ranks(dist.get_rank(), dist.get_world_size(), group=group)
        self._is_serving = self.ranks.world_size > 1

    def all_results(self, requests: Sequence[Any], on_results: OnResults = no_progress) -> list[Any]:
        """Process all requests and return their results in order; call it on rank 0.

        Raises:
            Refusal: a rank raised it.
            RuntimeError: a rank failed with another error.
        """
        if self.ranks.world_size == 1:
            results = self._work(requests, 0, 1, on_results)
        else:
            dist.broadcast_object_list([list(requests)], src=0, group=self.ranks.group)
            results = self._together(requests, on_results)
        return [results[number] for number in range(len(requests))]

    def serve(self) -> None:
        """Work until dismissed; call it on all ranks but rank 0."""
        while True:
            message: list[Any] = [None]
            dist.broadcast_object_list(message, src=0, group=self.ranks.group)
            if message[0] is None:
                return
            self._together(message[0], no_progress)

    def dismiss(self) -> None:
        """End the work of the other ranks, unless an error has ended it already; call it on all ranks at the end."""
        if self._is_serving and self.ranks.rank == 0:
            dist.broadcast_object_list([None], src=0, group=self.ranks.group)
        if self.ranks.group is not None:
            dist.destroy_process_group(self.ranks.group)
        self._is_serving, self.ranks = False, Ranks(self.ranks.rank)

    def _together(self, requests: Sequence[Any], on_results: OnResults) -> dict[int, Any]:
        try:
            share: Any = self._work(requests, self.ranks.rank, self.ranks.world_size, on_results)
        except Exception as error:  # any error must reach the other ranks, which would wait otherwise
            share = error
        shares = self.ranks.gathered(share)
        self._is_serving = not any(isinstance(each, Exception) for each in shares)
        for rank, each in enumerate(shares):
            if isinstance(each, Refusal):
                raise each
            if isinstance(each, Exception):
                raise RuntimeError(f"rank {rank}: {each!r}") from each
        return {number: result for each in shares for number, result in each.items()}
