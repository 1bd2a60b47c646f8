"""Micro-batches: those that fit and fill a GPU by arithmetic, and those that a resumed run keeps."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptstar.checkpoint.read import read
from gptstar.config import TrainConfig
from gptstar.entry import compose
from gptstar.errors import ConfigError
from gptstar.model import GPTConfig
from gptstar.model.loss import LOGITS_AT_ONCE
from gptstar.ranks import Ranks
from gptstar.training import micro_batch
from gptstar.training.hardware import Hardware
from gptstar.training.memory import GPU_PART, own_part
from gptstar.training.micro_batch import (
    PIECE_LOGITS,
    USABLE,
    MicroBatches,
    agreed_micro_batches,
    micro_batches,
)
from gptstar.training.plan import Device, Workload, known_device
from support.runs import run_here

Overrides = Callable[..., list[str]]

AUTO = Hardware(accelerator="cpu")


def shape(name: str) -> GPTConfig:
    return GPTConfig(**compose("train", [f"model={name}"]).model)


def workload(name: str = "gpt127", **changes: Any) -> Workload:
    return replace(Workload(shape(name), 512, "bf16", sequences=1024), **changes)


@pytest.mark.parametrize(("name", "size"), [("gpt127", 64), ("gpt303", 32), ("gpt2_small", 64), ("gpt_1b3", 8)])
def test_a_card_is_filled_and_no_more(name: str, size: int) -> None:
    found = micro_batches(AUTO, workload(name), known_device("H100"))
    assert (found.size, found.accumulate) == (size, 1024 // size)
    assert found.logits_at_once == size * 512 * 50304  # whole: 80 GB hold them


def test_a_compiled_step_is_planned_near_its_measured_peak() -> None:
    """The measured peaks are 11.5 GB with autocast, 10.3 GB with bfloat16 weights, and 12.3 GB for gpt303."""
    for name, precision, size, measured in (
        ("gpt127", "bf16", 64, 11.5e9),
        ("gpt127", "bf16_weights", 64, 10.3e9),
        ("gpt303", "bf16", 32, 12.3e9),
    ):
        needed = workload(name, precision=precision).memory(size, size * 512 * 50304)
        assert measured < needed.total - needed.program < 1.25 * measured


@pytest.mark.parametrize("memory", [141, 24, 12, 6])
@pytest.mark.parametrize("name", ["gpt127", "gpt2_medium"])
def test_what_is_chosen_fits(name: str, memory: int) -> None:
    device = replace(known_device("H100"), memory=memory * 10**9)
    found = micro_batches(AUTO, workload(name), device)
    fits = workload(name).memory(found.size, found.logits_at_once).total <= USABLE * device.memory
    smallest = workload(name).memory(1, PIECE_LOGITS).total
    assert fits or (found.size == 1 and smallest > USABLE * device.memory)


def test_less_memory_first_costs_size_then_whole_logits() -> None:
    sizes = [micro_batches(AUTO, workload(), replace(known_device("H100"), memory=int(gb * 1e9))) for gb in (80, 12, 6)]
    assert [each.size for each in sizes] == sorted((each.size for each in sizes), reverse=True)
    assert sizes[1].logits_at_once == sizes[1].size * 512 * 50304
    assert sizes[2].logits_at_once == PIECE_LOGITS


@pytest.mark.parametrize(("logits", "whole"), [("whole", True), ("pieces", False)])
def test_the_user_chooses_how_logits_are_held(logits: Any, whole: bool) -> None:
    found = micro_batches(replace(AUTO, logits=logits), workload(), known_device("H100"))
    assert (found.logits_at_once == found.size * 512 * 50304) == whole
    assert (found.logits_at_once == PIECE_LOGITS) != whole


@pytest.mark.parametrize("asked", [7, 64])
def test_a_given_size_is_a_limit_and_batches_are_alike(asked: int) -> None:
    found = micro_batches(replace(AUTO, micro_batch_size=asked), workload(sequences=1000), known_device("3090"))
    assert (found.size, found.accumulate) == {7: (5, 200), 64: (50, 20)}[asked]


def test_a_cpu_takes_what_it_took() -> None:
    cpu = Device("cpu", 24 * 10**9, 1e12, 1.0, is_gpu=False)
    assert micro_batches(AUTO, workload(on_gpu=False), cpu) == MicroBatches(8, 128, LOGITS_AT_ONCE)
    assert micro_batches(AUTO, workload(on_gpu=False, sequences=6), cpu) == MicroBatches(6, 1, LOGITS_AT_ONCE)


def test_several_processes_of_a_cpu_take_what_they_took() -> None:
    cpu, two = Device("cpu", 24 * 10**9, 1e12, 1.0, is_gpu=False), replace(AUTO, devices=2)
    assert micro_batches(two, workload(on_gpu=False, sequences=512), cpu).size == 64


def test_a_huge_step_is_split_at_once() -> None:
    found = micro_batches(AUTO, workload(sequences=2**45), known_device("H100"))
    assert (found.size, found.accumulate) == (64, 2**39)


@pytest.mark.parametrize("given", ["abc", "0", "-1", "5", "nan"])
def test_a_stray_part_of_a_gpu_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GPU_PART, given)
    with pytest.raises(ConfigError, match=f"GPTSTAR_GPU_PART={given} in the environment is not in"):
        own_part()


class Two(Ranks):
    """Two ranks, of which the other chose other micro-batches."""

    other = MicroBatches(1, 1)

    def gathered(self, value: Any) -> list[Any]:
        return [value, self.other if isinstance(value, MicroBatches) else value]


def agree(
    saved: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    hardware: Hardware = AUTO,
    memory: float = 80e9,
    ranks: Ranks | None = None,
) -> tuple[MicroBatches, list[str]]:
    """Return the micro-batches of a run on an H100 with the given free memory, and its warnings."""
    warnings: list[str] = []
    device = replace(known_device("H100"), memory=int(memory))
    monkeypatch.setattr(micro_batch, "free_device", lambda _: device)
    return agreed_micro_batches(hardware, workload(), saved, ranks or Ranks(), warnings.append), warnings


def test_ranks_take_what_each_of_them_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Two(world_size=2)
    for other in (MicroBatches(32, 32, 32 * 512 * 50304), MicroBatches(128, 8, PIECE_LOGITS)):
        ranks.__dict__["other"] = other
        found, _ = agree({}, monkeypatch, ranks=ranks)
        assert found.size == min(64, other.size)
        assert found.size * found.accumulate == 1024
        assert found.logits_at_once == min(64 * 512 * 50304, other.logits_at_once)


def test_a_run_goes_on_with_what_it_kept_as_long_as_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = MicroBatches(16, 64, PIECE_LOGITS)
    saved = kept.as_dict(1)
    assert agree(saved, monkeypatch) == (kept, [])  # though 64 would fill the card
    smaller, warnings = agree(saved, monkeypatch, memory=5e9)
    assert smaller.size < 16
    assert "the checkpoint's 16 sequences at once do not fit into the free memory" in warnings[0]
    assert agree(kept.as_dict(2), monkeypatch)[0].size == 64  # another number of devices rounds otherwise anyway
    assert agree(replace(kept, accumulate=32).as_dict(1), monkeypatch)[0].size == 64  # of another batch


@pytest.mark.parametrize(
    ("keys", "goes_on"),
    [
        ({"micro_batch_size": 16}, True),
        ({"micro_batch_size": 31}, True),
        ({"micro_batch_size": 32}, False),
        ({"logits": "pieces"}, True),
        ({"logits": "whole"}, False),
    ],
)
def test_keys_that_allow_what_was_kept_keep_it(
    keys: dict[str, Any], goes_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = MicroBatches(16, 64, PIECE_LOGITS)
    found, _ = agree(kept.as_dict(1), monkeypatch, hardware=replace(AUTO, **keys))
    assert (found == kept) == goes_on


def test_without_a_compiler_whole_logits_are_counted_with_all_that_a_loss_makes_of_them() -> None:
    compiled, eager = (workload(compiled=each).memory(64, 64 * 512 * 50304).logits for each in (True, False))
    assert eager > 7 * compiled
    assert micro_batches(AUTO, workload(compiled=False), replace(known_device("3090"), memory=10**10)).size >= 1


@pytest.mark.parametrize("damage", [{}, {"size": 0}, {"size": "16"}, {"accumulate": None}])
def test_what_was_not_kept_whole_is_chosen_anew(damage: dict[str, Any]) -> None:
    saved = MicroBatches(16, 64).as_dict(1) | damage if damage else {}
    assert MicroBatches.restored(saved, 1024, 1) is None


def test_a_checkpoint_keeps_how_its_run_was_split(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("total_steps=5", "hardware.micro_batch_size=2", output="run"))
    training = read(tmp_path / "run" / "last.ckpt").training
    assert training is not None
    assert training.machine == {"size": 2, "accumulate": 4, "logits_at_once": LOGITS_AT_ONCE, "world_size": 1}


def test_every_command_line_for_a_gpu_leaves_the_choice_to_the_card() -> None:
    for hardware in ("auto", "ddp", "fsdp", "multi_node"):
        words = ["experiment=gpt127", f"hardware={hardware}", "hardware.accelerator=cpu", "data.shards=x"]
        config = TrainConfig.parse(compose("train", words))
        assert config.hardware.micro_batch_size == "auto"
