"""Tokens per second and MFU, from steps that include no compilation."""

import time


class Throughput:
    """Timer of this process's optimizer steps.

    The first step at each context length includes compilation. It is excluded from tokens per second and MFU; its
    duration is reported separately.

    Args:
        batch_tokens: the tokens of an optimizer step, over all devices.
        peak_flops: floating-point operations per second of all devices together by the data sheet; None if unknown.
    """

    def __init__(self, batch_tokens: int, peak_flops: float | None) -> None:
        self._batch_tokens, self._peak_flops = batch_tokens, peak_flops
        self._lengths: set[int] = set()
        self._last_end, self._last_waited = time.perf_counter(), 0.0
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._steps, self._seconds, self._waited, self._flops, self._first_seconds = 0, 0.0, 0.0, 0.0, 0.0

    def is_first(self, length: int) -> bool:
        """Whether no step at this context length has ended in this process."""
        return length not in self._lengths

    def start(self, waited: float) -> None:
        """Start the clock before the first step.

        Args:
            waited: seconds the process has waited for batches so far.
        """
        self._last_end, self._last_waited = time.perf_counter(), waited

    def pause(self) -> None:
        """Stop the clock."""
        self._last_end -= time.perf_counter()

    def unpause(self) -> None:
        """Restart the clock."""
        self._last_end += time.perf_counter()

    def end_step(self, length: int, flops: float, waited: float) -> float:
        """Count a step that ends now.

        Args:
            length: the step's context length.
            flops: the model's floating-point operations in it, over all devices.
            waited: seconds the process has waited for batches so far.

        Returns:
            The duration of the step in seconds.
        """
        now = time.perf_counter()
        seconds, step_waited = now - self._last_end, waited - self._last_waited
        self._last_end, self._last_waited = now, waited
        self._waited += step_waited
        if self.is_first(length):
            self._lengths.add(length)
            self._first_seconds += seconds
        else:
            self._steps += 1
            self._seconds += seconds
            self._flops += flops
        return seconds

    def rates(self) -> dict[str, float]:
        """Return tokens per second and MFU of the interval; empty if every step was the first at its length."""
        if not self._steps:
            return {}
        rates = {"tokens_per_second": self._steps * self._batch_tokens / self._seconds}
        return rates | ({"mfu": self._flops / self._seconds / self._peak_flops} if self._peak_flops else {})

    def end_interval(self) -> dict[str, float]:
        """Return the rates, the duration of first steps and the share of waiting, and begin a new interval."""
        metrics = self.rates() | ({"first_step_seconds": self._first_seconds} if self._first_seconds else {})
        metrics["data_wait"] = self._waited / (self._seconds + self._first_seconds)
        self._begin_interval()
        return metrics
