"""`gptstar generate` as it is typed."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptstar.checkpoint.format import Checkpoint, read_file, write
from gptstar.cli import main
from gptstar.data.tokenizer import Tokenizer
from gptstar.inference.generate import generate
from gptstar.inference.sampling import GREEDY, USUAL, Sampling
from support.models import build_with


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat, and the dog — naïve — looked on: 猫 " * 40], 290)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    built = build_with(tokenizer, {})
    path = tmp_path_factory.mktemp("model") / "one.ckpt"
    write(path, Checkpoint(built.config, built.state_dict(), built.tokenizer))
    return str(path)


def test_it_prints_what_the_function_returns(
    model: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = build_with(tokenizer, {})

    def said(*words: str) -> str:
        main(["generate", model, "--tokens", "9", *words])
        return capsys.readouterr().out

    (usual,) = generate(built, "the cat", 9, sampling=USUAL)
    assert said("--prompt", "the cat") == said("--prompt", "the cat", "--stream") == f"the cat{usual.text}\n"
    assert said("--prompt", "the cat", "--stream", "--tokens", "0") == "the cat\n"
    (tmp_path / "prompt").write_text("the cat\n")
    assert said("--file", str(tmp_path / "prompt")) == f"the cat{usual.text}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat\n")))
    assert said("--file", "-") == f"the cat{usual.text}\n"
    assert said() == generate(built, "", 9, sampling=USUAL)[0].text + "\n"

    drawn = generate(built, ["a", "b"], 9, n=2, sampling=Sampling(1.5, top_p=0.7, seed=3, repetition_penalty=1.3))
    words = ("--prompt", "a", "--prompt", "b", "-n", "2", "--temperature", "1.5", "--top-p", "0.7", "--seed", "3")
    printed = said(*words, "--repetition-penalty", "1.3")
    assert printed == "".join(f"--- {n} of 4 ---\n{t.prompt}{t.text}\n" for n, t in enumerate(drawn, start=1))

    (found,) = map(json.loads, said("--prompt", "the", "--greedy", "--json").splitlines())
    (greedy,) = generate(built, "the", 9, sampling=GREEDY, n_likeliest=5)
    assert (found["text"], found["tokens"], found["ended_by"]) == (greedy.text, greedy.tokens, greedy.ended_by)
    assert found["log_probabilities"] == pytest.approx(greedy.log_probabilities)
    table = said("--prompt", "the", "--greedy", "--probabilities")
    assert "perplexity of the continuation" in table
    assert table.count("│") > 9


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--top-p", "3"], "top_p=3.0"),
        (["--tokens", "-3"], "n_new=-3"),
        (["--stop", ""], "stop string is empty"),
        (["-n", "0"], "n=0"),
        (["-n", "2", "--stream"], "drop -n"),
        (["--file", "/nowhere"], "No such file"),
        (["--file", "/dev/zero"], "holds more than 67,108,864 bytes"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--tokens", "99999999999999"], "1 text of 1 tokens and 99,999,999,999,999 new ones would take"),
        (["-n", "1000000000000"], "GB of memory at least"),
        (["--file", "zeros"], "operations before the first new token"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    model: str,
    words: list[str],
    says: str,
    refusal: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zeros").write_text("0" * 3_000_000)
    assert says in refusal(main, ["generate", model, "--tokens", "3", *words])


def test_weights_that_are_not_numbers_are_refused(model: str, tmp_path: Path, refusal: Callable[..., str]) -> None:
    checkpoint = read_file(Path(model))
    checkpoint.weights["norm.weight"].fill_(float("nan"))
    write(tmp_path / "nan.ckpt", checkpoint)
    for words in ([], ["--greedy", "--json"], ["--stream"]):
        assert "logits are not finite" in refusal(main, ["generate", str(tmp_path / "nan.ckpt"), *words])


@pytest.mark.slow
def test_a_reader_that_has_had_enough_is_no_error(model: str) -> None:
    command = [sys.executable, "-m", "gptstar", "generate", model, "-n", "200", "--tokens", "20", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_a_page_is_not_served_where_it_cant_be(model: str, refusal: Callable[..., str]) -> None:
    pytest.importorskip("gradio")
    assert "can't serve at 192.0.2.7" in refusal(main, ["demo", model, "--host", "192.0.2.7"])
    assert "is given twice" in refusal(main, ["demo", model, model])
    assert "tokens=0" in refusal(main, ["demo", model, "--tokens", "0"])
