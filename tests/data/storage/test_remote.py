import contextlib
import functools
import http.server
import json
import os
import pickle
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3fs
from torch.utils.data import DataLoader, Dataset

from gptstar.data.preparation.writer import ShardLayout, ShardWriter
from gptstar.data.storage.manifest import SEGMENT_BYTES, Manifest, Source, write_manifest
from gptstar.data.storage.prefetch import PLANNED_SHARE, BatchesAhead, Span
from gptstar.data.storage.remote import SegmentCache, open_shards
from gptstar.data.storage.remote_files import RemoteFiles
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.storage.stream import TokenStream
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import DataError
from support.s3 import Server

N_SHARDS, SHARD_TOKENS = 12, 2_000_003
RUN, GROUP_RUNS = 2**18, 4
WINDOW, BATCH = 1024, 16
LIMIT = N_SHARDS * SHARD_TOKENS * 2 // 10
ADDRESS = "s3://shards/prepared"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of random tokens."""
    folder, random = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    tokenizer = Tokenizer.train(["some words to learn from, and more of them " * 9], 263)
    writer = ShardWriter(ShardLayout(folder, 263, tokenizer.end_of_text, SHARD_TOKENS), "made-up", "train")
    for _ in range(N_SHARDS):
        writer.extend(random.integers(0, 263, SHARD_TOKENS - 1), SHARD_TOKENS)
        writer.end_document()
    request = {"identity": "a", "whole": "a", "tokenizer": tokenizer.fingerprint, "n_vocab": 263}
    sources = {"made-up": Source("here", "none")}
    write_manifest(folder, Manifest(**request, sources=sources, shards=tuple(writer.finished)), tokenizer)
    return folder


@pytest.fixture(scope="module")
def server(s3: Server, local: Path) -> Server:
    store = s3fs.S3FileSystem()
    store.mkdir("shards")
    store.put(f"{local}/", "shards/prepared/", recursive=True)
    return s3


@pytest.fixture
def manifest(local: Path) -> Manifest:
    return ShardFolder(local).manifest


@pytest.fixture
def cache(server: Server, manifest: Manifest, tmp_path: Path) -> SegmentCache:
    return SegmentCache(RemoteFiles(ADDRESS, retry_seconds=30), manifest, tmp_path / "cache", LIMIT)


def stream(cache: SegmentCache, manifest: Manifest) -> TokenStream:
    return TokenStream([cache.tokens(shard) for shard in manifest.shards])


def two_level_order(n_tokens: int) -> list[list[int]]:
    """Batches of window starts: runs in random order, and windows in random order within groups of runs."""
    random = np.random.default_rng(1)
    runs = random.permutation(n_tokens // RUN) * RUN
    batches = []
    for first in range(0, len(runs), GROUP_RUNS):
        starts = (runs[first : first + GROUP_RUNS, None] + np.arange(0, RUN, WINDOW)).reshape(-1)
        batches += random.permutation(starts).reshape(-1, BATCH).tolist()
    return batches


def spans_of(tokens: TokenStream, batch: list[int]) -> list[Span]:
    return [span for start in batch for span in tokens.spans(start, WINDOW + 1)]


class Watch(threading.Thread):
    """Sums the sizes of all files in a folder again and again; `most` is the largest sum."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most, self.looks, self.done = folder, 0, 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.done.wait(0.002):
            total = 0
            for folder, _, names in os.walk(self.folder):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        total += os.stat(f"{folder}/{name}").st_size
            self.most, self.looks = max(self.most, total), self.looks + 1


def run_through(cache: SegmentCache, manifest: Manifest, local: Path, server: Server, outage: float) -> None:
    """One pass in the order of a run, the server gone for a while in its middle."""
    far, near = stream(cache, manifest), ShardFolder(local).stream("train", "made-up")
    batches, used = two_level_order(len(near) - 1), 0
    watch = Watch(cache.folder)
    for number, batch in enumerate(
        BatchesAhead(batches, lambda b: spans_of(far, b), cache, int(PLANNED_SHARE * LIMIT))
    ):
        if number == len(batches) // 2:
            server.stop()
            threading.Timer(outage, server.start).start()
            stopped = time.monotonic()
        assert np.array_equal(far.gather(np.asarray(batch), WINDOW + 1), near.gather(np.asarray(batch), WINDOW + 1))
        used += 2 * BATCH * (WINDOW + 1)
    watch.done.set()
    watch.join()
    assert time.monotonic() - stopped > outage
    assert watch.looks > 20
    assert LIMIT // 2 < watch.most <= LIMIT
    assert cache.fetched_bytes <= 1.2 * used


@pytest.mark.slow
def test_a_run_with_a_tenth_of_the_room_outlasts_an_outage(
    cache: SegmentCache, manifest: Manifest, local: Path, server: Server
) -> None:
    run_through(cache, manifest, local, server, outage=2.5)


@pytest.mark.slow
def test_a_run_outlasts_ten_seconds_without_a_server(
    cache: SegmentCache, manifest: Manifest, local: Path, server: Server
) -> None:
    run_through(cache, manifest, local, server, outage=10.0)


def test_an_address_reads_as_the_folder_it_was_copied_from(server: Server, local: Path) -> None:
    here, there = ShardFolder(local), ShardFolder(f"{ADDRESS}/", cache_bytes=LIMIT)
    assert there.manifest == here.manifest
    assert there.tokenizer.fingerprint == here.tokenizer.fingerprint
    far, near = there.stream("train", "made-up"), here.stream("train", "made-up")
    assert len(far) == len(near)
    assert there.cache is not None
    assert there.cache.fetched_bytes == 0
    for start, count in ((0, 1), (SHARD_TOKENS - 7, 13), (len(near) - 5, 5), (SHARD_TOKENS - 1, SHARD_TOKENS + 3)):
        assert np.array_equal(far.read(start, count), near.read(start, count))
    tokens = pickle.loads(pickle.dumps(there.cache.tokens(here.manifest.shards[1])))
    assert np.array_equal(tokens[5:99:3], np.load(local / f"{here.manifest.shards[1].name}.npy")[5:99:3])
    assert tokens[7:7].size == 0
    assert tokens.cache.fetched_bytes == 0  # all of it was on the disk


def test_an_address_in_memory(local: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in local.iterdir():
        memory.pipe(f"/somewhere/{path.name}", path.read_bytes())
    far = ShardFolder("memory://somewhere", cache_bytes=LIMIT).stream("train", "made-up")
    near = ShardFolder(local).stream("train", "made-up")
    assert np.array_equal(far.read(3_000_000, 5000), near.read(3_000_000, 5000))
    memory.rm("/somewhere", recursive=True)


def spoil(monkeypatch: pytest.MonkeyPatch, times: int, differently: bool = False) -> list[str]:
    """Turn a bit in the first parts of token files that arrive."""
    honest, spoilt = s3fs.S3FileSystem._cat_file, []

    async def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        content = await honest(self, path, start=start, end=end, **options)
        if len(spoilt) < times and "segments" not in path:
            spoilt.append(path)
            where = len(spoilt) if differently else 1
            content = content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]
        return content

    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", cat_file)
    return spoilt


def test_damage_on_the_way_is_noticed_and_fetched_again(
    cache: SegmentCache, manifest: Manifest, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = spoil(monkeypatch, 2)
    near = ShardFolder(local).stream("train", "made-up")
    assert np.array_equal(stream(cache, manifest).read(0, 70_000), near.read(0, 70_000))
    assert len(spoilt) == 2


@pytest.mark.parametrize(("differently", "said"), [(False, "is damaged at its source"), (True, "time differently")])
def test_damage_for_good_is_one_error(
    cache: SegmentCache, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, differently: bool, said: str
) -> None:
    spoil(monkeypatch, 10**6, differently)
    name = manifest.shards[3].name
    with pytest.raises(DataError, match=rf"^{ADDRESS}/{name}.npy \(bytes 65536 to 131072\) .*{said}.*$"):
        cache.tokens(manifest.shards[3])[40_000:40_001]


@pytest.mark.parametrize("name", ["segments", "{}.segments.npy"])
@pytest.mark.parametrize("size", [SEGMENT_BYTES // 2, None])
def test_damage_on_the_disk_is_noticed(
    cache: SegmentCache, manifest: Manifest, local: Path, name: str, size: int | None
) -> None:
    shard = manifest.shards[5]
    expected = np.load(local / f"{shard.name}.npy")[:9]
    assert np.array_equal(cache.tokens(shard)[:9], expected)
    path = cache.folder / name.format(shard.name)
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))
        file.truncate(min(size, len(content) - 1) if size else len(content))
    assert np.array_equal(pickle.loads(pickle.dumps(cache)).tokens(shard)[:9], expected)
    assert path.read_bytes() == content


@pytest.mark.slow
def test_a_server_gone_for_good_is_one_error(server: Server, manifest: Manifest, tmp_path: Path) -> None:
    cache = SegmentCache(RemoteFiles(ADDRESS, retry_seconds=1.0), manifest, tmp_path, LIMIT)
    tokens = cache.tokens(manifest.shards[0])
    tokens[:100]
    server.stop()
    try:
        start = time.monotonic()
        with pytest.raises(DataError, match=rf"^{ADDRESS} could not be reached for 1 s \(last error: .*\): check"):
            tokens[100_000:100_001]
        assert 1.0 <= time.monotonic() - start < 4.0
        assert len(tokens[:100]) == 100  # what is on the disk can still be read
        with pytest.raises(DataError, match="reached for"):
            list(BatchesAhead([[200_000]], lambda batch: [(tokens, batch[0], 1)], cache, LIMIT))
    finally:
        server.start()


def test_reading_ahead_stops_at_its_budget_and_goes_on(cache: SegmentCache, manifest: Manifest) -> None:
    tokens = cache.tokens(manifest.shards[2])
    batches = [[number * SEGMENT_BYTES // 2 + 99] for number in range(40)]  # each reads a segment
    reading = iter(BatchesAhead(batches, lambda batch: [(tokens, batch[0], 5)], cache, 8 * SEGMENT_BYTES))
    assert next(reading) == batches[0]
    time.sleep(1.0)
    assert 6 * SEGMENT_BYTES < cache.fetched_bytes < 9 * SEGMENT_BYTES
    assert [next(reading) for _ in range(12)] == batches[1:13]
    time.sleep(1.0)
    assert 18 * SEGMENT_BYTES < cache.fetched_bytes < 21 * SEGMENT_BYTES
    segments = tokens.segments(0, SHARD_TOKENS)
    held = {segment - segments[0] for segment, there in zip(segments, cache.holds(segments), strict=True) if there}
    assert held == set(range(20))
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class Reader(Dataset[tuple[np.ndarray, int, int]]):
    def __init__(self, cache: SegmentCache, manifest: Manifest) -> None:
        self.cache, self.stream = cache, stream(cache, manifest)

    def __len__(self) -> int:
        return len(self.stream) // 1000

    def __getitem__(self, number: int) -> tuple[np.ndarray, int, int]:
        return self.stream.read(1000 * number, 1000), os.getpid(), self.cache.fetched_bytes


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_workers_fetch_each_segment_once(cache: SegmentCache, manifest: Manifest, local: Path, method: str) -> None:
    stream(cache, manifest).read(5 * SHARD_TOKENS, 1)  # this process has its connections when it is forked
    here, n_windows = cache.fetched_bytes, 400
    loader = DataLoader(Reader(cache, manifest), batch_size=None, num_workers=2, multiprocessing_context=method)
    near, fetched = ShardFolder(local).stream("train", "made-up"), {}
    for number, (tokens, process, so_far) in zip(range(n_windows), loader, strict=False):
        assert np.array_equal(tokens, near.read(1000 * number, 1000))
        fetched[process] = so_far - (here if method == "fork" else 0)
    segments = -(-(128 + 2000 * n_windows) // SEGMENT_BYTES)
    hashes = os.path.getsize(local / f"{manifest.shards[0].name}.segments.npy")
    assert len(fetched) == 2
    assert sum(fetched.values()) <= (segments + 2) * SEGMENT_BYTES + hashes  # the loader reads a little ahead


def refused(address: str) -> str:
    with pytest.raises(DataError) as error:
        open_shards(address, LIMIT)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_address_without_shards_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused("memory://nowhere").startswith("memory://nowhere/manifest.json is missing: copy")
    assert refused("s3://shards/elsewhere").startswith("s3://shards/elsewhere/manifest.json is missing: copy")
    assert refused("s3://no-such-bucket/a").startswith("s3://no-such-bucket/a/manifest.json is missing: copy")
    assert "can't be read as an address" in refused("carrier-pigeon://a")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert refused("gs://bucket/a").endswith("pip install 'gptstar[gcs]'")


def test_an_address_without_credentials_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    assert "give the store's credentials, for S3 AWS_ACCESS_KEY_ID" in refused(ADDRESS)
    s3fs.S3FileSystem.clear_instance_cache()


def test_foreign_manifests_and_caches_too_small_are_refused(local: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/odd/manifest.json", b"{")
    assert "memory://odd/manifest.json is not a manifest" in refused("memory://odd")
    tree = json.loads((local / "manifest.json").read_text())
    tree["shards"][0]["name"] = "../../.bashrc"
    memory.pipe("/odd/manifest.json", json.dumps(tree).encode())
    assert "not a shard's name" in refused("memory://odd")
    tree["shards"] = tree["shards"][1:]
    memory.pipe("/odd/manifest.json", json.dumps(tree).encode())
    assert "memory://odd/tokenizer.json is missing" in refused("memory://odd")
    with pytest.raises(DataError, match=r"data\.cache_bytes=999 is too small"):
        open_shards("memory://odd", 999)
    memory.rm("/odd", recursive=True)


def test_a_server_that_sends_whole_files_is_refused(local: Path, manifest: Manifest, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    shutil.copytree(local, tmp_path / "served")
    handler = functools.partial(Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{site.server_port}"
        assert "is missing" in refused(f"{address}/nothing")
        cache = SegmentCache(RemoteFiles(address), manifest, tmp_path / "cache", LIMIT)
        with pytest.raises(DataError, match="was sent whole in answer to a range request"):
            cache.tokens(manifest.shards[0])[:3]
        site.shutdown()
