"""Batch sizes of evaluations: for real GPUs, as given by the user, and when a batch does not fit."""

from types import SimpleNamespace

import pytest
import torch

from gptstar.errors import ConfigError
from gptstar.evaluation.batch_size import BatchSize, batch_size_for, batch_size_within, smallest
from gptstar.evaluation.length.reading import losses_of
from gptstar.evaluation.precision import computing_in
from gptstar.evaluation.tasks.scoring import Scorer
from gptstar.evaluation.tasks.team import Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.inference import memory
from gptstar.model import GPTConfig
from support.models import KINDS, build
from support.scoring import assert_same, plainly, requests

GPT127 = GPTConfig(n_layers=6, d_model=1024, n_heads=8, n_vocab=50257)
GPT303 = GPTConfig(n_layers=8, d_model=1536, n_heads=8, n_vocab=50257)
LARGE = GPTConfig(n_layers=32, d_model=4096, n_heads=32, n_vocab=50257)


@pytest.mark.parametrize(
    ("config", "card", "tokens"),
    [
        (GPT127, 141, 65_536),
        (GPT303, 141, 65_536),
        (LARGE, 141, 16_384),
        (GPT127, 24, 32_768),
        (GPT303, 24, 16_384),
        (GPT303, 8, 4096),
    ],
)
def test_a_card_takes_what_its_memory_holds(config, card, tokens):
    weights, context = 4 * config.n_params, 500_000_000
    room = (card * 10**9 - weights - context) // memory.SHARE
    size = batch_size_within(room, config)
    assert size.tokens == tokens
    per_token = 4 * (
        3 * config.d_model + 6 * config.d_model + 2 * 4 * config.d_model + 2 * config.n_layers * config.d_model
    )
    assert size.tokens * per_token <= room // 2
    assert size.tokens == 65_536 or 2 * size.tokens * per_token > room // 2
    assert size.mask_cells * memory.MASK_CELL + size.logits * 16 <= room // 2


def test_the_fewest_tokens_are_tried_where_the_memory_is_nearly_full():
    assert batch_size_within(1, GPT127) == BatchSize(1024, 0, 0)
    model, asked = build(KINDS[0]), requests(n_contexts=3)
    scorer = Scorer(model)
    scorer.most = BatchSize(1, 0, 0)
    found = Team(Worker(scorer, SimpleNamespace())).all_results(asked)
    assert_same(found, [plainly(model, request) for request in asked], asked)


def test_the_usable_memory_is_half_of_what_nobody_uses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * 10**9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 10**9)
    assert memory.usable_bytes(torch.device("cuda")) == 17 * 10**9


def test_a_cpu_reads_what_is_fastest_there():
    assert batch_size_for(build(KINDS[0]), cpu_tokens=8192) == BatchSize(8192, 2**26, 2**25)
    assert Scorer(build(KINDS[0])).most.tokens == 1024
    assert Scorer(build(KINDS[0]), batch_tokens=97).most == BatchSize(97, 2**26, 2**25)


def test_ranks_agree_on_the_smallest():
    assert smallest([BatchSize(7, 50, 3), BatchSize(9, 40, 5)]) == BatchSize(7, 40, 3)
    alone = Team(lambda *_: {}).ranks.gathered(BatchSize(7, 50, 3))
    assert smallest(alone) == BatchSize(7, 50, 3)


class Limited(Scorer):
    """A scorer whose device holds a limited number of rows."""

    rows = 3

    def score(self, requests, batch):
        if len(batch) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().score(requests, batch)


def test_a_batch_that_does_not_fit_is_halved():
    model, asked = build(KINDS[0]), requests()
    progress = []
    team = Team(Worker(Limited(model, batch_tokens=8192), SimpleNamespace()))
    found = team.all_results(asked, progress.extend)
    assert_same(found, [plainly(model, request) for request in asked], asked)
    assert sorted(progress) == list(range(len(asked)))


def test_a_row_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(Limited, "rows", 0)
    team = Team(Worker(Limited(build(KINDS[0])), SimpleNamespace()))
    with pytest.raises(
        ConfigError, match=r"a row of \d+ tokens does not fit into the memory of cpu: lower evaluation\."
    ):
        team.all_results(requests())


def test_a_device_computes_a_batch_while_the_last_is_read_off(monkeypatch):
    model, asked, told = build(KINDS[0]), requests(), []

    class Watched(Scorer):
        def score(self, requests, batch):
            told.append("start")
            finish = super().score(requests, batch)
            return lambda: told.append("read") or finish()

    Team(Worker(Watched(model, batch_tokens=97), SimpleNamespace())).all_results(asked)
    assert told[:4] == ["start", "start", "read", "start"]
    assert told[-1] == "read"
    assert told.count("start") == told.count("read")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_is_read_without_tf32(dtype, monkeypatch):
    model, during = build(KINDS[0]), []
    hidden = model.hidden

    def watched(*arguments):
        during.append((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))
        return hidden(*arguments)

    monkeypatch.setattr(model, "hidden", watched)
    torch.set_float32_matmul_precision("high")
    try:
        losses_of(model, torch.device("cpu"), dtype)(torch.tensor([[1, 2, 3]]), 0)
        assert torch.get_float32_matmul_precision() == "high"
        with pytest.raises(ZeroDivisionError), computing_in(dtype, torch.device("cpu")):
            _ = 1 / 0
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert during == [("highest", dtype is torch.bfloat16)]
