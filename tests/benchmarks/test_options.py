"""Options of the training step on a GPU: each computes the same, and changes what it is meant to change."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor_config

import gpu_options
from gptstar.model import GPT
from gptstar.model.blocks import ParallelBlock
from gptstar.model.kernels import flex
from speed import engine, options
from speed.comparison import Comparison
from speed.engine import Measured, Outcome
from speed.worker import WorkerError
from support.comparison import STAR


@pytest.fixture(autouse=True)
def unchanged_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options change modules: put them back after each test."""
    monkeypatch.setattr(ParallelBlock, "forward", ParallelBlock.forward)
    monkeypatch.setattr(flex, "flex_attention", flex.flex_attention)
    monkeypatch.setattr("speed.job.LEAST_SECONDS", 0.0)


class InThisProcess:
    """In a worker's place: it builds and measures here."""

    def __init__(self, build: str, arguments: dict[str, Any], *_: object) -> None:
        self.name, self.arguments = build, arguments
        self.about = {"tokens": 64.0, "flops": 1.0, "weight_bytes": 0.0, "n_params": 1.0, "first_step": 2.0}

    def wait_until_ready(self) -> None:
        pass

    def build(self, patience: float = 0.0) -> None:
        if self.name != "machine.limits":
            self.job = options.training(**self.arguments)

    def round(self) -> dict[str, float]:
        if self.name == "machine.limits":
            return {"gemm_float32": 1e12}
        if self.arguments.get("joined") == "inputs":
            raise WorkerError("RuntimeError: it can't")
        return {"seconds": float(self.job.round()), "cpu_seconds": 1.0, "peak": 1e9}

    def close(self) -> None:
        pass


def trained(model: GPT) -> list[Tensor]:
    """The loss and the gradients of a step."""
    torch.manual_seed(1)
    tokens = torch.randint(101, (3, 32))
    model.zero_grad()
    loss = model(tokens[:, :-1], tokens[:, 1:], reduction="sum")
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("joined", ["inputs", "both"])
def test_joined_products_learn_what_separate_ones_learn(joined: options.Joined) -> None:
    torch.manual_seed(0)
    model = GPT(STAR)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    expected = [each.clone() for each in trained(model)]
    separate = ParallelBlock.forward
    options.join_products(joined)
    assert ParallelBlock.forward is not separate
    called: list[str] = []
    model.blocks[0].attention.out.register_forward_hook(lambda *_: called.append("out"))
    for mine, its in zip(trained(model), expected, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)
    assert called == (["out"] if joined == "inputs" else [])


def test_flex_attention_gets_the_options_where_a_compiler_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(flex, "flex_attention", lambda query, *_, **keywords: given.append(keywords) or query)
    options.tune_flex_attention({"fwd_BLOCK_M": 32})
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    query = torch.ones(1, 2, 8, 4)
    mask = flex.block_mask(8, None, torch.device("cpu"))
    assert flex.masked_attention(query, query, query, torch.ones(2), mask) is query
    assert given[0]["kernel_options"] == {"fwd_BLOCK_M": 32}
    assert given[0]["block_mask"] is mask


def test_a_mode_of_the_compiler_holds_wherever_it_is_called() -> None:
    with inductor_config.patch(max_autotune=False, coordinate_descent_tuning=False):
        options.tune_compiler("max-autotune-no-cudagraphs")
        assert inductor_config.max_autotune
        assert inductor_config.coordinate_descent_tuning
        assert not inductor_config.triton.cudagraphs


def test_options_are_measured_and_one_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "Worker", InThisProcess)
    gpu_options.main(["--device", "cpu", "--rounds", "3"])
    printed = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in printed.splitlines() if line.startswith("| ")}
    assert set(rows) == {
        *("option", "---", "as it is", "as it is, again", "joined inputs", "joined inputs and outputs"),
        *("logits in pieces of 2^28", "logits in pieces of 2^26", "4 sequences"),
    }
    assert "| joined inputs | RuntimeError: it can't |" in printed
    assert rows["joined inputs"].endswith("| leave |")
    assert "| as it is | 1.000 (1.000–1.000) |" in printed
    assert rows["4 sequences"].split(" | ")[7] == "2"


def test_an_option_that_no_time_is_left_for_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "Worker", InThisProcess)
    gpu_options.main(["--device", "cpu", "--seconds", "0", "--only", "2^28"])
    assert "| logits in pieces of 2^28 | skipped: no time was left |" in capsys.readouterr().out


def outcome(**seconds: list[float]) -> Outcome:
    about = {"tokens": 64.0, "flops": 1.0, "first_step": 2.0}
    base = {gpu_options.BASE: [1.0] * 9, **seconds}
    entries = {name: Measured(about, of, of, peak=1e9) for name, of in base.items()}
    return Outcome("", {}, [1e12] * 10, 1e12, entries)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([0.98] * 9, "keep"),
        ([0.997] * 9, "leave"),  # faster, but too little
        ([0.9] * 4 + [1.01] * 5, "leave"),  # perhaps by chance
        ([1.1] * 9, "leave"),
        ([], "leave"),
    ],
)
def test_an_option_is_kept_if_it_is_faster_by_more_than_chance(seconds: list[float], said: str) -> None:
    found = outcome(option=seconds)
    compared = Comparison("options", "", (), gpu_options.BASE, "gemm_bf16", 9)
    row = gpu_options.table(compared, found).rows[-1]
    assert row[0] == "option"
    assert row[-1] == said


def test_a_gpu_has_options_that_a_cpu_lacks() -> None:
    names = [entry.name for entry in gpu_options.comparison("gpt303", "cuda").entries]
    assert names[:2] == ["as it is", "as it is, again"]
    assert names[-1] == "max-autotune-no-cudagraphs"  # it takes longest
    assert {"128 sequences", "flex, FLASH backend"} <= set(names)
    assert not any("flex" in entry.name for entry in gpu_options.comparison("gpt303", "cpu").entries)
    only = gpu_options.comparison("gpt127", "cuda", "joined,FLASH").entries
    assert len(only) == 5
    assert only[0].arguments["batch"] == 64
    with pytest.raises(SystemExit, match="--only nothing: no option has that in its name"):
        gpu_options.main(["--device", "cpu", "--only", "nothing"])
