"""A process that builds one thing and then measures it each time it is asked, and the handle that asks it.

Every worker has threads, an allocator and its settings of its own, so none is measured under another's.
"""

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from gptstar.inference.memory import peak_bytes
from gptstar.training.memory import keep_freed_memory

ROOT = Path(__file__).parents[2]
EXTRA_PACKAGES = ROOT / ".venv" / "bench"
"""Where `make bench` puts peers whose requirements conflict with ours."""

INSTALL = {
    "litgpt": "pip install --no-deps --target .venv/bench litgpt==0.5.13 (make bench does)",
    "transformers": "pip install transformers",
}
"""Packages of peers by what to type for them."""

LOG = "log.txt"
PATIENCE = 900.0
"""Seconds for an answer; `torch.compile` may take minutes."""


class WorkerError(Exception):
    """Why a worker has no figure to give, in one line."""


class Worker:
    """A process that imports what it needs as soon as it is started, and builds and measures when it is asked to.

    Args:
        build: `module.function` below `speed`, which returns a `Job`.
        arguments: of that function.
        address_space: bytes the process may map at most; None for no limit.
        keeps_memory: freed memory stays with the process, as in a training run of ours.

    Attributes:
        about: what the job says of itself, and `held`: the process's peak in bytes before the first round.
    """

    def __init__(
        self,
        build: str,
        arguments: Mapping[str, Any],
        address_space: int | None = None,
        keeps_memory: bool = False,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="speed-")
        what = build, arguments, address_space, keeps_memory
        self._process = context.Process(target=_main, args=(theirs, self._folder.name, *what))
        self._process.start()
        theirs.close()
        self.about: dict[str, float] = {}

    def wait_until_ready(self) -> None:
        """Wait until it has imported what it needs; `build` says whether that failed."""
        with contextlib.suppress(ConnectionError):
            self._connection.poll(PATIENCE)

    def build(self, patience: float = PATIENCE) -> None:
        """Build what it will measure.

        Args:
            patience: seconds to wait for it.

        Raises:
            WorkerError: it could not be built: a package is missing, memory ran out, or it took too long.
        """
        try:
            self._answer()
            self.about = self._request("build", patience)
        except BaseException:
            self.close()
            raise

    def round(self) -> dict[str, float]:
        """One round: `seconds` a step, `cpu_seconds` of all cores, and the process's `peak` in bytes so far.

        Raises:
            WorkerError: it failed, or died.
        """
        return self._request("round")

    def close(self) -> None:
        """End the process and all that it started."""
        self._connection.close()
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid or 0, signal.SIGKILL)
            self._process.kill()  # one that has just started has no group yet
        self._process.join()
        self._folder.cleanup()

    def _request(self, request: str, patience: float = PATIENCE) -> dict[str, float]:
        with contextlib.suppress(ConnectionError):  # it has failed; what it sent before it ended says why
            self._connection.send(request)
        return self._answer(patience)

    def _answer(self, patience: float = PATIENCE) -> dict[str, float]:
        try:
            if not self._connection.poll(patience):
                raise WorkerError(f"no answer in {patience:.0f} s")
            kind, content = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            lines = Path(self._folder.name, LOG).read_text(errors="replace").strip().splitlines()
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit {code}"
            raise WorkerError(f"died ({how}){': ' + lines[-1] if lines else ''}") from None
        if kind == "failed":
            raise WorkerError(content)
        return content


def _main(
    connection: Connection,
    folder: str,
    build: str,
    arguments: Mapping[str, Any],
    limit: int | None,
    keeps_memory: bool,
) -> None:
    """The process: import, build when asked, say what was built, then a round for each request.

    It ends when the other end is closed.
    """
    os.setsid()  # a group of its own, to be ended with all that it starts
    sys.path[:] = [*map(os.path.abspath, sys.path), str(EXTRA_PACKAGES)]
    os.chdir(folder)
    with open(LOG, "w") as file:  # what a training run prints is not for this terminal
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with contextlib.suppress(OSError):  # where memory runs out, this process goes, and nothing else on the machine
        Path("/proc/self/oom_score_adj").write_text("1000")
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if keeps_memory:
        keep_freed_memory()
    try:
        module, _, function = build.rpartition(".")
        built = getattr(importlib.import_module(f"speed.{module}"), function)
        connection.send(("ready", {}))
        connection.recv()
        job = built(**arguments)
    except BaseException as error:
        with contextlib.suppress(ConnectionError):
            connection.send(("failed", reason(error)))
        return
    about = {name: getattr(job, name) for name in ("tokens", "flops", "weight_bytes", "n_params")}
    about |= {"first_step": job.first_step} if job.first_step else {}
    connection.send(("built", about | {"held": peak_memory()}))
    if job.main is None:
        _serve(connection, job)
    else:
        threading.Thread(target=_serve_and_end, args=(connection, job), daemon=True).start()
        try:
            job.main()
        except BaseException as error:
            connection.send(("failed", reason(error)))


def _serve_and_end(connection: Connection, job: Any) -> None:
    _serve(connection, job)
    os._exit(0)  # the main thread may wait for ever to be asked for more


def _serve(connection: Connection, job: Any) -> None:
    with contextlib.suppress(EOFError, ConnectionError):
        while connection.recv() == "round":
            try:
                start, start_cpu = time.perf_counter(), time.process_time()
                found = job.round()
                found = found if isinstance(found, dict) else {"seconds": found}
                cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
            except BaseException as error:
                connection.send(("failed", reason(error)))
                return
            cpu_seconds = found.get("seconds", wall) * cpu / wall
            connection.send(("measured", found | {"cpu_seconds": cpu_seconds, "peak": peak_memory()}))


def reason(error: BaseException) -> str:
    """An exception in one line; of a missing package, how to get it."""
    traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in INSTALL:
        return f"not installed: {INSTALL[(error.name or '').split('.')[0]]}"
    text = str(error).strip()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "out of memory"
    return f"{type(error).__name__}: {text.partition(chr(10))[0]}"


def peak_memory() -> int:
    """The most memory held so far, in bytes: PyTorch's on a GPU where one was used, else the process's."""
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    return peak_bytes(torch.device("cuda" if on_gpu else "cpu")) or 0
