"""The estimated needs of a run against the measured ones."""

from dataclasses import replace

import pytest
import torch

from gptstar.cli import main
from gptstar.model import GPT, GPTConfig
from gptstar.model.softmax_scale import SSMax
from gptstar.training.optimizers import OPTIMIZERS
from gptstar.training.plan import Device, Workload, step_seconds

CONFIG = GPTConfig(n_layers=3, d_model=256, n_heads=4, n_vocab=1000)
BATCH, LENGTH = 3, 64


def bytes_saved(config: GPTConfig, *, bf16: bool, attention: str, again: bool) -> int:
    """Return the bytes that autograd keeps for the backward pass, without parameters and the loss's gradient."""
    model = GPT(config)
    model.use(attention=attention, activation_checkpointing=again)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    windows = torch.randint(config.n_vocab, (BATCH, LENGTH + 1))
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        _kept_alive = model(windows[:, :-1], windows[:, 1:], reduction="sum")
    return sum(sizes.values()) - 4 * config.n_vocab * config.d_model


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(("attention", "on_gpu"), [("products", False), ("columns", True), ("bias", True)])
@pytest.mark.parametrize(
    "modifier",
    [{}, {"softmax_scale": SSMax(LENGTH)}, {"attention_window": 16, "attention_sinks": 2}],
    ids=["plain", "ssmax", "window"],
)
def test_activations_are_those_that_autograd_keeps(
    residual: str, bf16: bool, attention: str, on_gpu: bool, modifier: dict[str, object]
) -> None:
    if "softmax_scale" in modifier and (attention, bf16) == ("columns", False):
        pytest.skip("no device takes columns for float32")
    config = replace(CONFIG, residual=residual, **modifier)
    planned = Workload(config, LENGTH, "bf16" if bf16 else "float32", on_gpu=on_gpu).memory(BATCH)
    casts = 2 * (config.n_params - config.n_vocab * config.d_model) if bf16 else 0  # of blocks: the loss makes its own
    measured = bytes_saved(config, bf16=bf16, attention=attention, again=False)
    assert planned.activations + casts == pytest.approx(measured, rel=0.06)


def test_blocks_computed_again_keep_what_goes_into_them() -> None:
    some, none = (
        Workload(CONFIG, LENGTH, "float32", activation_checkpointing=again).memory(BATCH).activations
        for again in (True, False)
    )
    one_block = (none - 8 * BATCH * LENGTH * CONFIG.d_model) // CONFIG.n_layers
    measured = bytes_saved(CONFIG, bf16=False, attention="bias", again=True)
    assert some - one_block == pytest.approx(measured, rel=0.02)


def test_fsdp_divides_what_is_kept() -> None:
    whole, part = (Workload(CONFIG, LENGTH, "float32", shards=shards).memory(BATCH) for shards in (1, 8))
    assert whole.parameters + whole.gradients + whole.optimizer == 16 * CONFIG.n_params
    assert part.optimizer == CONFIG.n_params
    assert part.gathered > 0 == whole.gathered


@pytest.mark.parametrize("algorithm", OPTIMIZERS.names())
def test_the_optimizer_keeps_what_is_planned(algorithm: str) -> None:
    if algorithm == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    model = GPT(CONFIG)
    chosen = OPTIMIZERS.parse({"algorithm": algorithm, "learning_rate": 0.01})
    optimizer = chosen.build(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step" and not key.startswith("qmap")  # all parameters share its tables of values
    )
    planned = Workload(CONFIG, LENGTH, "float32", optimizer=chosen).memory(BATCH).optimizer
    assert planned == pytest.approx(kept, rel=0.02 if algorithm == "adamw_8bit" else 0)  # biases that are large


def test_time_is_work_by_rate() -> None:
    device = Device("x", 10**9, peak_flops=1e12, share=0.5, is_gpu=True)
    times = [
        step_seconds(
            CONFIG, context_length=64, batch_tokens=6400, device=device, devices=devices, activation_checkpointing=again
        )
        for devices, again in ((1, False), (4, False), (1, True))
    ]
    assert times[0] == pytest.approx(CONFIG.training_flops(64) * 6400 / 0.5e12)
    assert times[0] / times[1] == pytest.approx(4)
    assert times[2] / times[0] == pytest.approx(4 / 3)


def test_the_command_says_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "experiment=gpt_1b3", "hardware=fsdp", "hardware.devices=8", "--device", "H100"])
    said = capsys.readouterr().out
    assert "\nfits\n" in said
    assert "25,500 steps of 1,048,576 tokens" in said
    main(["plan", "experiment=gpt_1b3", "hardware.micro_batch_size=32", "--device", "3090", "--share", "0.3"])
    said = capsys.readouterr().out
    assert "does not fit: use more devices with hardware=fsdp" in said
    assert "at 30% of the peak" in said
    in_8_bits = ["optimizer=adamw_8bit", "hardware=ddp", "hardware.devices=8", "hardware.accelerator=cpu"]
    main(["plan", "experiment=gpt_1b3", *in_8_bits, "model.n_layers=99", "--device", "3090"])
    assert "does not fit: use more devices with hardware=fsdp and optimizer=adamw" in capsys.readouterr().out
    main(["plan", "experiment=gpt303", "hardware.micro_batch_size=128", "--device", "3090"])
    assert "does not fit: give hardware.micro_batch_size=" in capsys.readouterr().out


def test_another_machines_gpu_is_planned_by_its_own_rules(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "experiment=gpt127", "hardware.attention=flex", "hardware=ddp", "--device", "NVIDIA H100 PCIe"])
    said = capsys.readouterr().out
    assert "micro-batches of 64 x 512 tokens, 16 per step (hardware.micro_batch_size=auto)" in said
    assert "on 1 device (hardware.devices=auto: give the number of devices)" in said
    assert "at 40% of the peak (assumed), so" in said
    assert "program (assumed)" in said


def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "hardware=cpu"])
    assert "GFLOP/s in all" in capsys.readouterr().out


def test_a_device_without_a_data_sheet_is_refused(refusal) -> None:
    assert "--device V100 is unknown: choose one of B200" in refusal(main, ["plan", "--device", "V100"])
    assert "--share 2 is not in (0, 1]" in refusal(main, ["plan", "--device", "H100", "--share", "2"])
