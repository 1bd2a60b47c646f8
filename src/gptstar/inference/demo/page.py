"""The Gradio page."""

import os
import random
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at import

import gradio as gr
from starlette.middleware import Middleware

from gptstar.errors import ConfigError, Refusal
from gptstar.inference.demo.guard import Guard
from gptstar.inference.demo.markup import CSS, Page, about
from gptstar.inference.demo.request import METHODS, Limits, Request
from gptstar.inference.generate import Piece, stream, tokenizer_of
from gptstar.model import GPT
from gptstar.terminal import plain

EXAMPLES = (
    "The",
    "Once upon a time, in a village by the sea,",
    "The main difference between the two theories is that",
    "Q: What is the capital of France?\nA:",
)
NONE = "none"
SECONDS_PER_FRAME = 0.1
N_LIKELIEST = 5

Frame = tuple[str, str, str, str]
"""A text and the line below it, then those of the second model."""


def page(models: Mapping[str, GPT], limits: Limits) -> gr.Blocks:
    """Build the page.

    Args:
        models: models in eval mode with tokenizers, by name; several can be compared side by side.
    """
    names = list(models)

    def write(
        prompt: Any, first: Any, second: Any, n_new: Any, method: Any, seed: Any, *values: Any
    ) -> Iterator[Frame]:
        keys = ("temperature", "top_k", "top_p", "typical_p", "repetition_penalty")
        try:
            request = Request.parse(limits, prompt, n_new, method, seed=seed, **dict(zip(keys, values, strict=True)))
            if first not in models or second not in (*models, NONE, None):
                raise gr.Error("this page does not have that model", print_exception=False)
            chosen = dict.fromkeys([first, second] if second in models else [first])
            yield from _frames({name: models[name] for name in chosen}, request, limits)
        except Refusal as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title="GPT*", analytics_enabled=False) as blocks:
        gr.Markdown("# GPT*\nContinue a text. Point at a token to see its probability and its alternatives.")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                prompt = gr.Textbox(EXAMPLES[1], label="Prompt", lines=5, max_length=limits.characters)
                with gr.Row():
                    go = gr.Button("Write", variant="primary", elem_id="write", min_width=80)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=80)
                gr.Examples([[each] for each in EXAMPLES], prompt, label="Examples", cache_examples=False)
            with gr.Column(scale=3, min_width=300):
                with gr.Row():
                    (text, line, _), (other, other_line, beside) = (_output(number) for number in range(2))
                gr.Markdown(
                    "Darker tokens are less likely: below 50 %, 10 % and 1 %. The same seed gives the same text."
                )
        with gr.Row():
            with gr.Column(min_width=280):
                several = len(names) > 1
                first = gr.Dropdown(names, value=names[0], label="Model", interactive=several)
                second = gr.Dropdown([NONE, *names], value=NONE, label="Beside it", visible=several)
                n_new = gr.Slider(1, limits.tokens, min(100, limits.tokens), step=1, label="Length (tokens)")
            with gr.Column(min_width=280):
                method = gr.Radio(list(METHODS), value="Nucleus", label="How tokens are drawn")
                settings = {
                    "temperature": gr.Slider(0.05, 2.0, 0.8, step=0.05, label="Temperature"),
                    "top_k": gr.Slider(1, 200, 50, step=1, label="k", visible=False),
                    "top_p": gr.Slider(0.01, 1.0, 0.9, step=0.01, label="Probability of the nucleus"),
                    "typical_p": gr.Slider(0.01, 1.0, 0.9, step=0.01, label="Probability kept", visible=False),
                }
            with gr.Column(min_width=280):
                penalty = gr.Slider(1.0, 2.0, 1.0, step=0.05, label="Repetition penalty")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
                roll = gr.Button("Another seed", size="sm", elem_id="roll")
        outputs = [text, line, other, other_line]
        inputs = [prompt, first, second, n_new, method, seed, *settings.values(), penalty]
        running = gr.on(
            [go.click, prompt.submit], write, inputs, outputs, concurrency_limit=limits.at_once, show_progress="minimal"
        )
        stop.click(None, cancels=[running], queue=False, api_visibility="private")
        roll.click(lambda: random.randrange(2**31), None, seed, queue=False, api_visibility="private")
        method.change(
            lambda name: [gr.update(visible=each in METHODS.get(name, ())) for each in settings],
            method,
            list(settings.values()),
            queue=False,
            api_visibility="private",
        )
        second.change(
            lambda name: gr.update(visible=name != NONE), second, beside, queue=False, api_visibility="private"
        )
    blocks.queue(max_size=limits.waiting, api_open=False)  # no request bypasses the queue
    return blocks


def serve(models: Mapping[str, GPT], limits: Limits, *, host: str, port: int | None) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError: the address doesn't exist, or its port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port or 0), family=family):
            pass
    except (OSError, OverflowError) as error:
        where = host if port is None else f"{host}, port {port}"
        raise ConfigError(f"can't serve at {where} ({error}): choose another --host or --port") from error
    blocks = page(models, limits)
    # The page fetches nothing from other servers, and can't read or write files of this machine.
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        share=False,
        ssr_mode=False,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(Guard, host=host, limits=limits)]},
    )
    print(plain(f"{', '.join(models)} at {address} (Ctrl-C ends it)"), flush=True)
    blocks.block_thread()


def _output(number: int) -> tuple[gr.HTML, gr.HTML, gr.Column]:
    with gr.Column(min_width=280, visible=number == 0) as column:
        text = gr.HTML('<div class="written"></div>', elem_id=f"text-{number}")
        return text, gr.HTML(about("", [], 0), elem_id=f"about-{number}"), column


def _frames(models: Mapping[str, GPT], request: Request, limits: Limits) -> Iterator[Frame]:
    """Yield texts and the lines below them, a few times per second; two models take turns, token by token."""
    began = last_frame = time.monotonic()
    pages = {name: Page(request.prompt, tokenizer_of(model)) for name, model in models.items()}
    written: dict[str, list[Piece]] = {name: [] for name in models}
    streams = {
        name: stream(model, request.prompt, request.n_new, sampling=request.sampling, n_likeliest=N_LIKELIEST)
        for name, model in models.items()
    }

    def frame(note: str = "") -> Frame:
        seconds = time.monotonic() - began
        lines = [(page.html, about(name, written[name], seconds, note)) for name, page in pages.items()]
        lines += [("", "")] * (2 - len(lines))
        return (*lines[0], *lines[1])

    while streams:
        for name in tuple(streams):
            piece = next(streams[name], None)
            if piece is None:
                del streams[name]
                continue
            pages[name].add(piece)
            written[name].append(piece)
        now = time.monotonic()
        if now - began > limits.seconds:
            yield frame(f", stopped after {limits.seconds:g} seconds, the limit of this page")
            return
        if now - last_frame > SECONDS_PER_FRAME:
            yield frame()
            last_frame = now
    yield frame()
