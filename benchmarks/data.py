"""Benchmark the preparation and reading of data against alternatives, in interleaved rounds on this machine.

    python benchmarks/data.py prepare 'text/*/*.jsonl.zst' gpt2.json    tokenizers and ftfy called bare
    python benchmarks/data.py read                                      numpy, a DataLoader, Arrow, litdata

`prepare` is timed from compressed files to verified shards. The bare calls start with text in memory and write nothing.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from gptstar.data.config import DataConfig
from gptstar.data.order.mixture import Mixture
from gptstar.data.order.windows import StepSampler, Windows
from gptstar.data.preparation.adopt import HEADER_INTS, MAGIC, VERSION, place_of
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.stream import TokenStream
from gptstar.data.text.corpora import local_corpora

Action = Callable[[], object]
CONTEXT, BLOCK, ROWS = 512, 1024, 64


def forget(batches: Iterable[object]) -> None:
    """Read batches without keeping them, as training does; kept batches would need newly allocated memory."""
    deque(batches, maxlen=0)


def interleaved(actions: dict[str, Action], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each action in each round, after an uncounted warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def show(title: str, times: dict[str, list[float]], base: str, amount: float, unit: str) -> None:
    """Print a table of speeds, and of their ratios to the base, round by round."""
    table = Table("", unit, f"of {base}", "from", "to", title=title)
    for name, seconds in times.items():
        ratios = [one / other for one, other in zip(times[base], seconds, strict=True)]
        speed = amount / statistics.median(seconds)
        row = [f"{speed:,.3g}" if speed < 1000 else f"{speed:,.0f}"]
        row += [f"{each:.2f}" for each in (statistics.median(ratios), min(ratios), max(ratios))]
        table.add_row(name, *row)
    Console().print(table)


def fix_and_encode(job: tuple[str, list[str]]) -> int:
    """Process one core's share of the text by calling both libraries directly."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = tokenizers.Tokenizer.from_file(job[0])
    texts = [ftfy.fix_text(text) for text in job[1]]
    return sum(len(each.ids) for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False))


def prepare(pattern: str, tokenizer_file: str, rounds: int) -> None:
    """Measure tokens per second from files to shards, against the libraries alone."""
    texts = [text for corpus in local_corpora(pattern) for text in corpus.documents()]
    bare = tokenizers.Tokenizer.from_file(tokenizer_file)
    n_tokens = sum(len(each.ids) for each in bare.encode_batch_fast(texts, add_special_tokens=False))
    cores = len(os.sched_getaffinity(0))
    by_length = sorted(texts, key=len, reverse=True)
    shares = [(tokenizer_file, by_length[core::cores]) for core in range(cores)]

    def ours(clean: str) -> Action:
        def action() -> None:
            with tempfile.TemporaryDirectory() as folder:
                config = DataConfig(
                    source="local",
                    context_length=CONTEXT,
                    files=pattern,
                    tokenizer=Path(tokenizer_file),
                    shards=f"{folder}/shards",
                    clean=clean,  # type: ignore[arg-type]
                    workers=cores,
                )
                ensure_prepared(config, bare.get_vocab_size(), Console(quiet=True))

        return action

    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        actions = {
            "encode_batch_fast alone": lambda: bare.encode_batch_fast(texts, add_special_tokens=False),
            "gptstar prepare, clean=none": ours("none"),
            "fix_text and encode_batch_fast alone": lambda: pool.map(fix_and_encode, shares, chunksize=1),
            "gptstar prepare": ours("ftfy"),
        }
        times = interleaved(actions, rounds)
    names = list(actions)
    for pair in (names[:2], names[2:]):
        title = f"{n_tokens:,} tokens of {len(texts):,} documents on {cores} cores"
        show(title, {name: times[name] for name in pair}, pair[0], n_tokens, "tokens/s")


class Items(Dataset[torch.Tensor]):
    """The usual kind of dataset: one item per window, collated into batches."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // CONTEXT

    def __getitem__(self, number: int) -> torch.Tensor:
        start = number * CONTEXT
        return torch.from_numpy(self._tokens[start : start + CONTEXT + 1].astype(np.int64))


def read(rounds: int, batches: int, n_shards: int) -> None:
    """Measure the batches of random windows per second."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.random.default_rng(0).integers(0, 50257, 100_000_000 // BLOCK * BLOCK + 1, dtype=np.uint16)
        np.save(f"{folder}/one.npy", tokens)
        for number, part in enumerate(np.array_split(tokens, n_shards)):
            np.save(f"{folder}/{number:03d}.npy", part)
        one = np.load(f"{folder}/one.npy", mmap_mode="r")
        many = [np.load(f"{folder}/{number:03d}.npy", mmap_mode="r") for number in range(n_shards)]
        header = np.zeros(HEADER_INTS, "<i4")
        header[:3] = MAGIC, VERSION, len(tokens)
        Path(f"{folder}/one.bin").write_bytes(header.tobytes() + tokens.tobytes())
        place = place_of(Path(f"{folder}/one.bin"))
        theirs = Windows(
            [TokenStream([np.memmap(place.file, place.dtype, mode="r", offset=place.offset)])], CONTEXT, BLOCK
        )
        ours = {
            1: Windows([TokenStream([one])], CONTEXT, BLOCK),
            n_shards: Windows([TokenStream(many)], CONTEXT, BLOCK),
        }
        sampler = StepSampler(
            ours[1],
            Mixture.from_epochs({("text", "first"): ours[1].n_blocks}, {"text": 1.0}),
            seed=0,
            sequences_per_step=ROWS,
            micro_batch_size=ROWS,
            start_step=0,
            total_steps=batches,
        )
        numbers = list(sampler)

        def gather() -> None:
            for rows in numbers:
                starts = np.asarray(rows) * CONTEXT
                torch.from_numpy(one[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))

        def loop(action: Callable[[list[int]], object]) -> Action:
            return lambda: forget(map(action, numbers))

        items = Items(one)
        actions: dict[str, Action] = {
            "numpy: one gather from a memmap": gather,
            "gptstar, one shard": loop(ours[1].__getitems__),
            f"gptstar, {n_shards} shards": loop(ours[n_shards].__getitems__),
            "gptstar, llm.c's .bin where it is": loop(theirs.__getitems__),
            "gptstar, through a DataLoader": lambda: forget(
                DataLoader(ours[1], batch_sampler=numbers, collate_fn=_as_is)
            ),
            "items and default collate": lambda: forget(DataLoader(items, batch_sampler=numbers)),
        }
        actions |= _peers(Path(folder), one, numbers)
        times = interleaved(actions, rounds)
        amount = batches * ROWS * CONTEXT
        title = f"{batches} batches of {ROWS} windows of {CONTEXT + 1} from {one.nbytes >> 20} MiB"
        show(title, times, next(iter(actions)), amount, "tokens/s")
    _positions(ours[1])


def _as_is(batch: torch.Tensor) -> torch.Tensor:
    return batch


def _peers(folder: Path, tokens: np.ndarray, numbers: list[list[int]]) -> dict[str, Action]:
    """Return readers of the same windows in other libraries' formats, if these libraries are installed."""
    import datasets

    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"))})
    where = {"gen_kwargs": {"path": str(folder / "one.npy")}, "cache_dir": str(folder / "arrow")}
    arrow = datasets.Dataset.from_generator(_rows, features=features, **where)
    arrow = arrow.with_format("numpy")
    peers: dict[str, Action] = {
        "datasets, Arrow": lambda: forget(torch.from_numpy(arrow[each]["tokens"].astype(np.int64)) for each in numbers)
    }
    try:
        from litdata import StreamingDataset, TokensLoader, optimize
    except ImportError:
        return peers
    optimize(
        _slice,
        [(str(folder / "one.npy"), start) for start in range(0, len(tokens), 2**22)],
        str(folder / "litdata"),
        chunk_bytes="64MB",
        item_loader=TokensLoader(),
        num_workers=1,
    )
    lit = StreamingDataset(str(folder / "litdata"), item_loader=TokensLoader(block_size=CONTEXT + 1))
    last = len(lit)
    peers["litdata"] = lambda: forget(torch.stack([lit[n % last].to(torch.int64) for n in each]) for each in numbers)
    return peers


def _rows(path: str) -> Iterator[dict[str, np.ndarray]]:
    tokens = np.load(path, mmap_mode="r")
    return ({"tokens": tokens[start : start + CONTEXT + 1]} for start in range(0, len(tokens) - CONTEXT, CONTEXT))


def _slice(piece: tuple[str, int]) -> torch.Tensor:
    path, start = piece
    return torch.from_numpy(np.load(path, mmap_mode="r")[start : start + 2**22].astype(np.int32))


def _positions(windows: Windows) -> None:
    """Measure the time to start at a position, and the memory of a long read."""
    mixture = Mixture.from_epochs({("text", "first"): windows.n_blocks}, {"text": 1.0})

    def begin(position: int) -> Action:
        def action() -> None:
            sampler = StepSampler(
                windows,
                mixture,
                seed=0,
                sequences_per_step=1024,
                micro_batch_size=ROWS,
                start_step=position // 512,
                total_steps=position // 512 + 50,
            )
            for _ in sampler:
                pass

        return action

    times = interleaved({"from position 0": begin(0), "from position 10^10": begin(10**10)}, 7)
    show("the order of 50 steps of 512 blocks", times, "from position 0", 50, "steps/s")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    random = np.random.default_rng(0)
    for _ in range(2000):
        windows.__getitems__(random.integers(0, len(windows), ROWS).tolist())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"2,000 batches more: peak memory grew by {(after - before) / 1024:.1f} MiB (the mapped file included)")


def main() -> None:
    """Run the benchmark that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "read"))
    parser.add_argument("text", nargs="?", help="prepare: a glob of files")
    parser.add_argument("tokenizer", nargs="?", help="prepare: a `tokenizers` JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--shards", type=int, default=40)
    options = parser.parse_args()
    if options.what == "read":
        read(options.rounds, options.batches, options.shards)
    elif options.text and options.tokenizer:
        prepare(options.text, options.tokenizer, options.rounds)
    else:
        parser.error("prepare needs a glob of text and a tokenizer")


if __name__ == "__main__":
    main()
