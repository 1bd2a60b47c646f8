"""Hardware settings: precision, attention, activation checkpointing, compilation, and memory."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptstar.checkpoint.read import read
from gptstar.errors import ConfigError
from gptstar.model import GPT, GPTConfig
from gptstar.training.curriculum import Curriculum
from gptstar.training.hardware import Hardware
from gptstar.training.metrics_csv import read_metrics
from gptstar.training.working_copy import WorkingCopy
from support.runs import run_here

Overrides = Callable[..., list[str]]


def losses(folder: Path) -> list[float]:
    """Return a run's training loss at each step."""
    return [row["train/loss"] for row in read_metrics(folder) if "train/loss" in row]


@pytest.mark.slow
def test_how_it_computes_changes_a_run_by_rounding_alone(overrides: Overrides, tmp_path: Path) -> None:
    ways = {
        "plain": ["hardware.attention=bias"],
        "columns": ["hardware.attention=columns"],
        "products": ["hardware.attention=products"],
        "checkpointed": ["hardware.attention=bias", "hardware.activation_checkpointing=true"],
    }
    for name, way in ways.items():
        run_here(overrides(*way, "total_steps=12", output=name))
    plain = losses(tmp_path / "plain")
    assert len(plain) == 12
    for name in ways:
        assert losses(tmp_path / name) == pytest.approx(plain, abs=1e-4)
    assert losses(tmp_path / "checkpointed") == plain


def test_bfloat16_weights_train_as_autocast_does_and_save_their_float32_master(
    overrides: Overrides, tmp_path: Path
) -> None:
    for precision in ("float32", "bf16", "bf16_weights"):
        fast = ("optimizer.learning_rate=4e-3", "schedule.warmup_steps=1")
        run_here(overrides(f"hardware.precision={precision}", *fast, output=precision))
    exact = losses(tmp_path / "float32")
    assert exact[-1] < exact[0] - 0.3
    for precision in ("bf16", "bf16_weights"):
        assert losses(tmp_path / precision) == pytest.approx(exact, abs=0.02)
    saved = read(tmp_path / "bf16_weights" / "last.ckpt")
    assert {weight.dtype for weight in saved.weights.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in saved.weights.values())
    assert set(saved.weights) == set(read(tmp_path / "float32" / "last.ckpt").weights)


@pytest.mark.slow
def test_a_run_with_bfloat16_weights_goes_on_as_if_never_stopped(overrides: Overrides, tmp_path: Path) -> None:
    way = ("hardware.precision=bf16_weights", "schedule.decay_until=24")
    run_here(overrides(*way, output="whole"))
    run_here(overrides(*way, "total_steps=10", output="parted"))
    run_here(overrides(*way, output="parted"))
    assert losses(tmp_path / "parted") == losses(tmp_path / "whole")


def test_small_gradients_add_up_in_float32() -> None:
    torch.manual_seed(0)
    master = GPT(GPTConfig(n_layers=1, d_model=8, n_heads=2, n_vocab=31))
    copy = WorkingCopy(master)
    tokens = torch.randint(31, (2, 7))
    copy.model(tokens[:, :-1], tokens[:, 1:], reduction="sum").backward()
    first = [parameter.grad.clone() for parameter in master.parameters() if parameter.grad is not None]
    assert {grad.dtype for grad in first} == {torch.float32}
    assert len(first) == len(list(master.parameters()))
    assert all(weight.grad is None for weight in copy.model.parameters())
    for _ in range(299):  # bfloat16 stops counting at 256
        copy.model(tokens[:, :-1], tokens[:, 1:], reduction="sum").backward()
    for once, parameter in zip(first, master.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 300 * once, rtol=1e-4, atol=1e-3)


def test_speed_waiting_and_memory_are_recorded(overrides: Overrides, tmp_path: Path) -> None:
    run_here(overrides("total_steps=6", output="run"))
    rows = [row for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert all(0 <= row["data_wait"] < 1 for row in rows)
    assert any(row["data_wait"] > 0 for row in rows)
    assert all(0.1 < row["peak_memory_gib"] < 24 for row in rows)
    assert all(later["peak_memory_gib"] >= row["peak_memory_gib"] for row, later in itertools.pairwise(rows))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"attention": "flex", "accelerator": "cpu"}, "can't train on a CPU"),
        ({"attention": "products", "accelerator": "cpu", "compile": "always"}, "only on a CPU without compilation"),
        ({"accelerator": "gpu"}, "sees no GPU"),
        ({"micro_batch_size": 0}, "below 1"),
    ],
)
def test_what_the_machine_can_not_do_is_refused_in_one_line(settings: dict[str, object], told: str) -> None:
    if settings.get("accelerator") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=told):
        Hardware(**settings).check_here()  # type: ignore[arg-type]


def test_a_macs_gpu_is_refused_until_somebody_tried_it(overrides: Overrides, tmp_path: Path, refusal) -> None:
    line = refusal(run_here, overrides("hardware.accelerator=mps"))
    assert "hardware.accelerator=mps: training on a Mac's GPU has not been tried: use hardware.accelerator=cpu" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_auto_says_which_device_it_took_and_why(
    overrides: Overrides, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(overrides("hardware.accelerator=auto", "total_steps=3", "schedule.warmup_steps=1"))
    said = [line for line in capsys.readouterr().out.splitlines() if "hardware.accelerator=auto" in line]
    assert said == [Hardware().explain_device()]
    assert said[0].startswith(f"training on the CPU: hardware.accelerator=auto, and PyTorch {torch.__version__} ")
    assert Hardware(accelerator="cpu").explain_device() is None
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert str(Hardware().explain_device()).endswith("sees no GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(Hardware().explain_device()).endswith("training on a Mac's GPU (mps) has not been tried")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert str(Hardware().explain_device()).startswith("training on NVIDIA H100: hardware.accelerator=auto")


def test_flex_attention_in_float32_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hardware, "device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"hardware\.attention=flex rounds float32 to TF32, an error of 1e-3"):
        Hardware(attention="flex", precision="float32").check_here()
    Hardware(attention="flex", precision="bf16").check_here()


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        Hardware(accelerator="cpu", compile="always").check_here()
    assert not Hardware(accelerator="cpu").compiles()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
@pytest.mark.parametrize("precision", ["float32", "bf16"])  # bf16_weights: some CPUs' compilers fail (next test)
def test_a_compiled_run_learns_the_same(precision: str, overrides: Overrides, tmp_path: Path) -> None:
    common = (f"hardware.precision={precision}", "total_steps=6")
    run_here(overrides(*common, output="plain"))
    run_here(overrides(*common, "hardware.compile=always", output="compiled"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=5e-3)
    assert set(read(tmp_path / "compiled" / "last.ckpt").weights) == set(read(tmp_path / "plain" / "last.ckpt").weights)


@pytest.mark.slow
def test_a_model_that_can_not_be_compiled_here_is_one_line(
    overrides: Overrides, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    said = refusal(run_here, overrides("hardware.compile=always"))
    assert "PyTorch can't compile the model here" in said
    assert "hardware.compile=never" in said


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_a_curriculum_is_compiled_once_for_each_length(overrides: Overrides, tmp_path: Path) -> None:
    words = ("curriculum.first_length=8", "curriculum.steps=6", "total_steps=9", "validate_every=4")
    run_here(overrides(*words, output="plain"))
    run_here(overrides(*words, "hardware.compile=always", output="compiled"))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=5e-3)
    assert torch._dynamo.config.recompile_limit == 4  # 8, 16 and 32 tokens, and the validation


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch.compile itself
def test_a_shape_more_than_announced_is_an_error(
    overrides: Overrides, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Curriculum, "n_lengths", lambda *_: 1)
    words = ("curriculum.first_length=16", "curriculum.steps=2", "total_steps=4", "validate_every=1")
    with monkeypatch.context() as patched:
        patched.setattr(Curriculum, "length", lambda self, step, full: full // 2 if step < 2 else full)
        said = refusal(run_here, overrides(*words, "hardware.compile=always"))
    assert "was called with more than the 2 shapes that it was compiled for: run it with hardware.compile=never" in said


# Embeddings of 39 MB: glibc maps what is larger than 32 MB afresh each time, however lucky the process.
STEPS = """
import resource, sys, torch
from gptstar.model import GPT, GPTConfig
from gptstar.training.memory import keep_freed_memory
from gptstar.training.optimizers.adamw import AdamW
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.set_num_threads(1)
model = GPT(GPTConfig(n_layers=1, d_model=192, n_heads=2, n_vocab=50257))
optimizer = AdamW(learning_rate=1e-3).build(model)
tokens = torch.randint(50257, (1, 17))
for number in range(7):
    if number == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    optimizer.zero_grad()
    model(tokens[:, :-1], tokens[:, 1:], reduction="sum").backward()
    optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_steps_reuse_freed_memory_without_the_kernel() -> None:
    def faults(way: str) -> int:
        done = subprocess.run([sys.executable, "-c", STEPS, way], capture_output=True, text=True, check=True)
        return int(done.stdout)

    few = 0.2 * faults("given back")
    assert any(faults("kept") < few for _ in range(2))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what /proc tells")
def test_the_peak_is_not_that_of_the_process_which_started_it() -> None:
    """Linux passes `ru_maxrss` of a large process on to its children."""
    code = "import torch; from gptstar.inference.memory import peak_bytes; print(peak_bytes(torch.device('cpu')))"
    large = f"import subprocess, sys; x = bytearray(3 * 10**9); subprocess.run([sys.executable, '-c', {code!r}])"
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, check=True)
    assert 10**8 < int(done.stdout) < 2 * 10**9


def test_a_working_copy_leaves_frozen_parameters_alone() -> None:
    model, tokens = GPT(GPTConfig(n_layers=1, d_model=16, n_heads=2, n_vocab=31)), torch.arange(10)[None]
    model.norm.requires_grad_(False)
    WorkingCopy(model).model(tokens, tokens, reduction="sum").backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_a_working_copy_made_in_validation_learns() -> None:
    model, tokens = GPT(GPTConfig(n_layers=1, d_model=16, n_heads=2, n_vocab=31)), torch.arange(10)[None]
    with torch.inference_mode():
        copy = WorkingCopy(model)
        copy.model(tokens)
    copy.model(tokens, tokens, reduction="sum").backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
