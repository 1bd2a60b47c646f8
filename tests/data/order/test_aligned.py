"""Windows that start at documents, and runs whose attention stays within them."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.data.config import DataConfig
from gptstar.data.order.training_data import training_data, validation_data
from gptstar.data.order.windows import DocumentBlocks, StepSampler, Windows
from gptstar.data.preparation.prepare import ensure_prepared
from gptstar.data.storage.documents import bounds
from gptstar.data.storage.shards import ShardFolder
from gptstar.data.storage.stream import TokenStream
from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.model import GPT
from gptstar.training.metrics_csv import read_metrics
from support.runs import SMALL, recorded, run_here
from support.text import QUIET, sentences, write_corpus

Overrides = Callable[..., list[str]]

BOTH_OPTIONS = ("data.attention=within", "data.windows=documents")


@pytest.mark.parametrize("opened", [False, True])
def test_blocks_of_documents_are_those_of_a_count_by_hand(opened: bool) -> None:
    random = np.random.default_rng(7)
    streams = [np.cumsum([0, *random.integers(1, 40, n)]) for n in (31, 0, 1, 17)]
    blocks = DocumentBlocks(streams, 5, end_of_text_first=opened)
    expected, per_stream, before = [], [], 0
    for stream in streams:
        already = len(expected)
        for start, end in pairwise(stream.tolist()):
            first = start if opened or start == 0 else start - 1
            expected += [(before + at, end - 1 - at) for at in range(first, end - 1, 5)]
        per_stream.append(len(expected) - already)
        before += int(stream[-1])
    assert blocks.stream_blocks == tuple(per_stream)
    starts, left = blocks.starts(np.arange(len(expected)))
    assert list(zip(starts.tolist(), left.tolist(), strict=True)) == expected


def test_windows_end_with_their_document() -> None:
    tokens = TokenStream([np.arange(100, 111)])
    documents = DocumentBlocks([np.asarray([0, 3, 11])], 6, end_of_text_first=False)
    windows = Windows([tokens], 3, 6, documents)
    assert windows.stream_blocks == (3,)
    assert windows.__getitems__(range(6)).tolist() == [
        [100, 101, 102, -1],
        [-1, -1, -1, -1],  # for the sake of a block's size
        [102, 103, 104, 105],
        [105, 106, 107, 108],
        [108, 109, 110, -1],
        [-1, -1, -1, -1],
    ]
    assert windows.starts([2, 4]).tolist() == [2, 8]


TEXTS = [text[: 3 + 41 * number] for number, text in enumerate(sentences(31, 220, seed=3))]
"""Documents from a few tokens to many blocks."""


def prepared(tmp_path: Path, **changes: object) -> tuple[ShardFolder, DataConfig]:
    files = write_corpus(tmp_path / "long", TEXTS) if not (tmp_path / "long").exists() else f"{tmp_path}/long/*.jsonl"
    sizes = {"context_length": 32, "block_tokens": 64, "shard_tokens": 997, "workers": 1, "validation_fraction": 0.2}
    config = DataConfig(**{"source": "local", "files": files, "windows": "documents", **sizes, **changes})
    return ensure_prepared(config, 300, QUIET), config


def documents_in(folder: ShardFolder, split: str, end_of_text: str) -> list[list[int]]:
    """The targets of each document of the corpus, in the order of the shards, with what its first input is."""
    found: list[list[int]] = []
    for shard in folder.shards(split, "long"):
        tokens = np.load(Path(folder.folder) / f"{shard.name}.npy")
        for start, end in pairwise(bounds(folder, shard).tolist()):
            opened = [] if end_of_text == "both" or not found else [folder.tokenizer.end_of_text]
            found.append([*opened, *tokens[start:end].tolist()])
    return found


@pytest.mark.parametrize("end_of_text", ["between", "both"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_token_of_every_document_is_a_target_once(tmp_path: Path, split: str, end_of_text: str) -> None:
    folder, config = prepared(tmp_path, end_of_text=end_of_text)
    expected = documents_in(folder, split, end_of_text)
    assert len(folder.shards("train", "long")) > 3
    windows = training_data(folder, config)[0] if split == "train" else validation_data(folder, config)["long"]
    rows = windows.__getitems__(range(len(windows))).reshape(windows.n_blocks, 2, 33)
    blocks = iter(torch.cat((rows[:, 0, :1], rows[:, :, 1:].flatten(1)), dim=1).tolist())
    texts = []
    for document in expected:
        read = [document[0]]
        for _ in range(math.ceil((len(document) - 1) / 64)):
            block = next(blocks)
            assert block[0] == read[-1]  # goes on where it was, and at first starts at the document
            read += [token for token in block[1:] if token >= 0]
        assert read == document
        texts.append(folder.tokenizer.decode(read))
    assert not list(blocks)
    assert set(texts) <= set(TEXTS)
    goes_on = rows[:, 1, 1] >= 0
    assert torch.equal(rows[goes_on, 0, -1], rows[goes_on, 1, 0])


def test_an_epoch_reads_every_window_once(tmp_path: Path) -> None:
    folder, config = prepared(tmp_path)
    windows, mixture, blocks = training_data(folder, config)
    assert blocks == {"long": windows.n_blocks}
    order = {
        "seed": 3,
        "sequences_per_step": 2,
        "micro_batch_size": 2,
        "start_step": 0,
        "total_steps": windows.n_blocks,
    }
    assert sorted(sum(StepSampler(windows, mixture, **order), [])) == list(range(len(windows)))


def test_a_step_has_the_same_targets_at_every_context_length(tmp_path: Path) -> None:
    def targets(context: int, step: int) -> list[list[int]]:
        folder, config = prepared(tmp_path, context_length=context)
        windows, mixture, _ = training_data(folder, config)
        order = {"micro_batch_size": 1, "start_step": 0, "total_steps": 9}
        sampler = StepSampler(windows, mixture, seed=3, sequences_per_step=5 * 64 // context, **order)
        return windows.__getitems__(sampler.global_batch(step))[:, 1:].reshape(5, 64).tolist()

    for step in (0, 1, 8):
        assert targets(64, step) == targets(32, step) == targets(4, step)


def test_shards_far_away_are_refused(tmp_path: Path) -> None:
    folder, config = prepared(tmp_path)
    far = ShardFolder(f"file://{folder.folder}", cache_bytes=2**24)
    with pytest.raises(ConfigError, match=r"data.windows=documents needs to know .* copy the shards to this machine"):
        training_data(far, config)


@pytest.mark.parametrize(
    "options",
    [BOTH_OPTIONS, *(pytest.param(each, marks=pytest.mark.slow) for each in (BOTH_OPTIONS[:1], BOTH_OPTIONS[1:]))],
    ids=["both", "within", "fill"],
)
def test_a_run_learns_and_goes_on_as_if_never_stopped(
    options: tuple[str, ...], overrides: Overrides, tmp_path: Path
) -> None:
    more = (*options, "model.dropout=0.1", "schedule.decay_until=24", "total_steps=14")
    run_here(overrides(*more, output="whole"))
    assert recorded(tmp_path / "whole")[1] == pytest.approx(math.log(300), abs=0.05)
    assert recorded(tmp_path / "whole")[14] < recorded(tmp_path / "whole")[1] - 0.1
    assert sorted(recorded(tmp_path / "whole", "validation/loss")) == [10, 14]
    run_here(overrides(*more, "total_steps=8"))
    run_here(overrides(*more))
    whole, resumed = (tmp_path / name for name in ("whole", "run"))
    assert recorded(whole) == recorded(resumed)
    first, second = read(whole / "last.ckpt"), read(resumed / "last.ckpt")
    torch.testing.assert_close(first.weights, second.weights, rtol=0, atol=0)
    torch.testing.assert_close(first.training.optimizer, second.training.optimizer, rtol=0, atol=0)


def test_a_step_is_the_mean_over_its_targets(overrides: Overrides, tmp_path: Path) -> None:
    """However it is divided into micro-batches; at the first step, that by hand."""
    more = ("data.windows=documents", "data.context_length=16", "total_steps=2", "optimizer.learning_rate=3e-3")
    more += ("data.attention=within", "batch_tokens=1024", "schedule.warmup_steps=0")
    for size in (64, 1):  # of 64 windows
        run_here(overrides(*more, f"hardware.micro_batch_size={size}", output=f"{size}"))
    one, many = ([row for row in read_metrics(tmp_path / f"{size}") if "train/loss" in row] for size in (64, 1))
    for name in ("train/loss", "gradient_norm"):
        assert [row[name] for row in one] == pytest.approx([row[name] for row in many], rel=1e-4)

    config = TrainConfig.parse(compose("train", overrides(*more)))
    folder = ensure_prepared(config.recipe.data, 300, QUIET)
    windows, mixture, _ = training_data(folder, config.recipe.data)
    order = {"micro_batch_size": 1, "start_step": 0, "total_steps": 1}
    batch = StepSampler(windows, mixture, seed=0, sequences_per_step=64, **order).global_batch(0)
    inputs, targets = windows.__getitems__(batch).split((16, 1), dim=1)[0], windows.__getitems__(batch)[:, 1:]
    assert not (targets >= 0).any(dim=1).all()  # one holds no target
    torch.manual_seed(0)
    model = GPT(config.recipe.model)
    inputs = inputs.clamp(min=0)
    ends = torch.tensor([[row[:at].count(folder.tokenizer.end_of_text) for at in range(16)] for row in inputs.tolist()])
    loss = cross_entropy(model(inputs, documents=ends)[targets >= 0], targets[targets >= 0])
    loss.backward()
    assert many[0]["train/loss"] == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()
    assert many[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_validation_counts_the_targets_of_each_document(overrides: Overrides, tmp_path: Path) -> None:
    """Loss and bits per byte, by hand: each document alone, in pieces of the context length."""
    more = (*BOTH_OPTIONS, "data.validation_tokens=1048576", "validate_every=4")
    run_here(overrides(*more, "total_steps=4", "schedule.warmup_steps=1"))
    config = TrainConfig.parse(compose("train", overrides(*more)))
    shards = ensure_prepared(config.recipe.data, 300, QUIET)
    model = read(tmp_path / "run/last.ckpt").build()
    tokenizer, nats, n_tokens, n_bytes = shards.tokenizer, 0.0, 0, 0
    for corpus in ("alpha", "beta"):
        for shard in shards.shards("validation", corpus):
            tokens = torch.from_numpy(np.load(Path(shards.folder) / f"{shard.name}.npy").astype(np.int64))
            for start, end in pairwise(bounds(shards, shard).tolist()):
                document = tokens[max(start - 1, 0) : end]
                n_tokens += len(document) - 1
                n_bytes += len(tokenizer.decode(document[1:].tolist()).encode())
                for at in range(0, len(document) - 1, 32):
                    window = document[at : at + 33]
                    cuts = [0, 1, len(window)] if window[0] == tokenizer.end_of_text else [0, len(window)]
                    pieces = [window[a : b + 1] for a, b in pairwise(cuts)]  # the end of the last one sees itself alone
                    with torch.inference_mode():
                        nats += sum(
                            model(p[None, :-1], p[None, 1:]).double().sum().item() for p in pieces if len(p) > 1
                        )
    last = [row for row in read_metrics(tmp_path / "run") if "validation/loss" in row][-1]
    assert last["validation/loss"] == pytest.approx(nats / n_tokens, rel=1e-6)
    assert last["validation/perplexity"] == pytest.approx(math.exp(nats / n_tokens), rel=1e-6)
    assert last["validation/bits_per_byte"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-6)


def test_bfloat16_runs(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides(*BOTH_OPTIONS, "hardware.precision=bf16", "total_steps=4", "schedule.warmup_steps=1"))
    assert len(recorded(tmp_path / "run")) == 4


def test_a_resume_under_another_option_is_refused_by_key(overrides: Overrides, refusal: Callable[..., str]) -> None:
    run_here(overrides("total_steps=4"))
    line = refusal(run_here, overrides("total_steps=4", *BOTH_OPTIONS))
    assert "data.windows (checkpoint: stream, now: documents)" in line
    assert "data.attention (checkpoint: across, now: within)" in line


@pytest.mark.parametrize("key", ["windows", "attention"])
def test_other_words_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"data.{key}=sideways") as refused:
        TrainConfig.parse(compose("train", [*SMALL, "data=local", "data.files=x", f"data.{key}=sideways"]))
    assert "\n" not in str(refused.value)


def test_the_defaults_are_as_ever() -> None:
    config = TrainConfig.parse(compose("train", [*SMALL, "data=local", "data.files=x"]))
    assert (config.recipe.data.windows, config.recipe.data.attention) == ("stream", "across")
