"""`gptstar generate` and `gptstar demo`: generate text at the command line or on a web page."""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptstar.cli.arguments import Commands, add_checkpoint, add_command, add_plugins
from gptstar.errors import ConfigError
from gptstar.terminal import Terminal, plain

if TYPE_CHECKING:
    from gptstar.inference.generate import Continuation
    from gptstar.model import GPT

N_LIKELIEST = 5

MAX_PROMPT_BYTES = 2**26


def add_generation_commands(commands: Commands) -> None:
    """Add `generate` and `demo` to the `gptstar` command."""
    description = "Print each prompt with its continuation. Without a prompt, the model begins a new document."
    command = add_command(commands, "generate", _generate, "continue prompts with a trained model", description)
    add_checkpoint(command, "a checkpoint, a run directory, or an export")
    add = command.add_argument_group("texts").add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="a prompt to continue; may be repeated")
    add("--file", type=Path, metavar="FILE", help="a file whose text is a prompt; - reads standard input")
    add("-n", type=int, default=1, metavar="N", help="continuations per prompt (default: %(default)s)")
    add("--tokens", type=int, default=200, metavar="N", help="most tokens to generate (default: %(default)s)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end a text where TEXT appears; may be repeated")

    add = command.add_argument_group("sampling", "the filters are applied together, in this order").add_argument
    add("--greedy", action="store_true", help="always take the likeliest token; no sampling")
    add("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: makes repeated tokens less likely")
    add("--temperature", type=float, default=0.8, metavar="T", help="divides the logits (default: %(default)s)")
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens (default: 50 if no filter is given)")
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="nucleus: sample from the likeliest tokens whose probabilities sum to P",
    )
    add("--typical-p", type=float, metavar="P", help="sample from the most typical tokens whose probabilities sum to P")
    add("--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)")

    add = command.add_argument_group("output").add_argument
    add("--stream", action="store_true", help="stream the output (the default in a terminal)")
    text = f"print a table: each token and the {N_LIKELIEST} likeliest at its place"
    add("--probabilities", action="store_true", help=text)
    add("--json", action="store_true", help="print one line of JSON per text: tokens, log-probabilities, why it ended")
    _add_speed(command)
    add_plugins(command)

    description = (
        "Serve a web page that continues texts with the models. It offers every sampling method, shows the probability "
        "of each token, and compares two models side by side. Only this machine can open it unless --host is given."
    )
    command = add_command(commands, "demo", _demo, "serve a web page for trying models", description)
    add = command.add_argument
    text = "a checkpoint, a run directory, or an export; PATH:averaged selects averaged weights"
    add("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help=text)
    add("--host", default="127.0.0.1", help="0.0.0.0: everybody who can reach this machine (default: %(default)s)")
    add("--port", type=int, metavar="N", help="port of the page (default: the first free one from 7860)")
    add = command.add_argument_group("limits").add_argument
    add("--tokens", type=int, default=1000, metavar="N", help="new tokens per request (default: %(default)s)")
    add("--characters", type=int, default=20_000, metavar="N", help="characters per prompt (default: %(default)s)")
    add("--seconds", type=float, default=120, metavar="S", help="seconds per request (default: %(default)s)")
    add("--at-once", type=int, default=2, metavar="N", help="requests served at once (default: %(default)s)")
    add("--waiting", type=int, default=20, metavar="N", help="requests that may wait (default: %(default)s)")
    _add_speed(command)
    add_plugins(command)


def _add_speed(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("speed").add_argument
    text = "precision of the weights; fewer bits are faster and slightly less exact (default: %(default)s)"
    add("--weights", choices=("float32", "bfloat16", "int8"), default="float32", help=text)
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:1 … (default: %(default)s)")


def _generate(options: argparse.Namespace) -> None:
    from gptstar.inference.generate import generate, stream
    from gptstar.inference.loading import load_for_inference
    from gptstar.inference.sampling import Sampling

    prompts = [*options.prompt, *([_read(options.file)] if options.file else [])] or [""]
    is_one, plain = len(prompts) * options.n == 1, not options.json and not options.probabilities
    if options.stream and not (is_one and plain):
        raise ConfigError(
            "--stream prints a single text as it is generated: drop -n, further prompts, --json and --probabilities"
        )
    no_filter = options.top_k is None and options.top_p is None and options.typical_p is None
    sampling = Sampling(
        temperature=0.0 if options.greedy else options.temperature,
        top_k=50 if no_filter else options.top_k,
        seed=options.seed,
        top_p=options.top_p,
        typical_p=options.typical_p,
        repetition_penalty=options.repetition_penalty,
    )
    settings: dict[str, Any] = {"n": options.n, "sampling": sampling, "stop": options.stop}
    model = load_for_inference(options.checkpoint, weights=options.weights, device=options.device)
    if is_one and plain and (options.stream or sys.stdout.isatty()):
        unprinted = prompts[0]
        for piece in stream(model, prompts, options.tokens, **settings):
            print(_visible(unprinted + piece.text), end="", flush=True)
            unprinted = ""
        print(_visible(unprinted))
        return
    with Terminal(stderr=True).status(f"writing {len(prompts) * options.n} texts of up to {options.tokens} tokens"):
        n_likeliest = None if plain else N_LIKELIEST
        texts = generate(model, prompts, options.tokens, n_likeliest=n_likeliest, **settings)
    for number, text in enumerate(texts, start=1):
        if options.json:
            print(json.dumps(asdict(text), ensure_ascii=False))
            continue
        if not is_one:
            print(f"--- {number} of {len(texts)} ---")
        print(_visible(text.prompt + text.text))
        if options.probabilities:
            _print_probabilities(model, text)


def _demo(options: argparse.Namespace) -> None:
    import importlib.util

    if importlib.util.find_spec("gradio") is None:
        raise ConfigError("gptstar demo needs Gradio: pip install 'gptstar[demo]'")
    from gptstar.inference.demo.page import serve
    from gptstar.inference.demo.request import Limits
    from gptstar.inference.loading import load_for_inference

    limits = Limits(options.tokens, options.characters, options.seconds, options.at_once, options.waiting)
    names = [path.stem if path.is_file() else path.resolve().name for path in options.checkpoints]
    if len(set(names)) < len(names):
        names = list(map(str, options.checkpoints))
    if len(set(names)) < len(names):
        raise ConfigError("a checkpoint is given twice: give each checkpoint once")
    models = {
        name: load_for_inference(path, weights=options.weights, device=options.device)
        for name, path in zip(names, options.checkpoints, strict=True)
    }
    serve(models, limits, host=options.host, port=options.port)


def _read(path: Path) -> str:
    """Read a prompt from a file, without the final newline."""
    with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
        content = file.read(MAX_PROMPT_BYTES + 1)  # a device or a pipe may be endless
    if len(content) > MAX_PROMPT_BYTES:
        raise ConfigError(
            f"--file {path} holds more than {MAX_PROMPT_BYTES:,} bytes, too much for a prompt: shorten it"
        )
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it to UTF-8") from error


def _visible(text: str) -> str:
    """Replace control characters if the output is a terminal."""
    return plain(text) if sys.stdout.isatty() else text


def _print_probabilities(model: "GPT", text: "Continuation") -> None:
    from math import exp

    from rich.table import Table
    from rich.text import Text

    from gptstar.inference.generate import printable, tokenizer_of

    tokenizer = tokenizer_of(model)
    table = Table("token", "probability", f"the {N_LIKELIEST} likeliest")
    table.columns[1].justify = "right"
    for token, log_probability, likeliest in zip(text.tokens, text.log_probabilities, text.likeliest, strict=True):
        others = "  ".join(f"{printable(tokenizer, other)} {exp(value):.3f}" for other, value in likeliest)
        table.add_row(Text(printable(tokenizer, token)), f"{exp(log_probability):.3f}", Text(others))
    mean = sum(text.log_probabilities) / len(text.log_probabilities)
    Terminal().print(table)
    print(f"perplexity of the continuation: {exp(-mean):.2f}")
