"""The demo: what it takes, what it shows, and in a browser what happens when somebody clicks."""

import json
import math
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import httpx
import pytest

from gptstar.checkpoint.format import Checkpoint, write
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import ConfigError
from gptstar.inference.demo.guard import is_served
from gptstar.inference.demo.markup import Page
from gptstar.inference.demo.request import METHODS, Limits, Request
from gptstar.inference.generate import Piece, generate
from gptstar.inference.sampling import Sampling
from support.models import build_with

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMITS = Limits(tokens=3000, characters=500, seconds=20, at_once=2, waiting=100)
JSON = {"Content-Type": "application/json"}
GIVEN = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "typical_p": 0.9, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the cat sat on the mat, and the dog — naïve — looked on: 猫 <b> $& " * 40], 290)


@dataclass(frozen=True)
class Served:
    address: str
    process: "subprocess.Popen[str]"

    @property
    def memory(self) -> int:
        """In KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("models")
    for name, kind in {"one": {}, "<b>other": {"residual": "sequential"}}.items():
        model = build_with(tokenizer, kind)
        write(folder / f"{name}.ckpt", Checkpoint(model.config, model.state_dict(), model.tokenizer))
    limits = ["--tokens", "3000", "--characters", "500", "--seconds", "20", "--waiting", "100"]
    command = [sys.executable, "-m", "gptstar", "demo", "one.ckpt", "<b>other.ckpt", *limits]

    def heed_interrupts() -> None:
        """Undo what a shell does to processes in the background, which these tests may be in."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "preexec_fn": heed_interrupts}
    with subprocess.Popen(command, cwd=folder, **options) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        try:
            yield Served(re.search(r"http://127.0.0.1:\d+", said)[0], process)  # type: ignore[index]
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(served: Served) -> str:
    return served.address


def asked(**changes: Any) -> Request:
    values = {"prompt": "a", "n_new": 5, "method": "Nucleus", "seed": 1} | GIVEN | changes
    return Request.parse(LIMITS, **values)


def test_only_the_settings_of_a_method_apply() -> None:
    found = {method: asked(method=method).sampling for method in METHODS}
    assert found["Greedy"] == Sampling(0.0, seed=1)
    assert found["Temperature"] == Sampling(0.8, seed=1)
    assert found["Top-k"] == Sampling(0.8, 50, seed=1)
    assert found["Nucleus"] == Sampling(0.8, seed=1, top_p=0.9)
    assert found["Typical"] == Sampling(0.8, seed=1, typical_p=0.9)
    assert asked(method="Greedy", top_p=math.nan).sampling == Sampling(0.0, seed=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": None},
        {"prompt": ["a"]},
        {"prompt": "a" * 501},
        {"n_new": 0},
        {"n_new": 3001},
        {"n_new": math.nan},
        {"n_new": math.inf},
        {"n_new": 2.5},
        {"n_new": "9"},
        {"n_new": True},
        {"n_new": 10**400},
        {"method": "Magic"},
        {"method": None},
        {"method": ["Nucleus"]},
        {"seed": -1},
        {"seed": 2**63},
        {"temperature": 0},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": -1},
        {"top_p": None, "method": "Top-k", "top_k": 1.5},
        {"repetition_penalty": None},
        {"repetition_penalty": math.nan},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_what_makes_no_sense_is_refused_in_a_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as error:
        asked(**wrong)
    assert len(str(error.value).splitlines()) == 1


def test_half_a_character_becomes_a_question_mark() -> None:
    assert asked(prompt="a\ud800b").prompt == "a?b"


def test_all_that_is_shown_is_escaped(tokenizer: Tokenizer) -> None:
    page = Page('<script>alert("1")</script>', tokenizer)
    wanted = tokenizer.encode(["<b> & \" ' 猫"])[0].tolist()
    for token in wanted:
        page.add(Piece(0, token, -1.0, ((token, -1.0),), tokenizer.text_of(token)))
    without = re.sub(
        r'<(div class="written"|span class="given"|i class="p\d" data-tip="[^"<>]*")>|</(div|span|i)>', "", page.html
    )
    assert "<" not in without
    assert "&lt;script&gt;" in without


def test_bytes_of_a_character_are_shown_with_it(tokenizer: Tokenizer) -> None:
    model = build_with(tokenizer, {})
    (text,) = generate(model, "a", 200, sampling=Sampling(9.0, seed=5), n_likeliest=2)
    page = Page("a", tokenizer)
    from gptstar.inference.generate import stream

    for piece in stream(model, "a", 200, sampling=Sampling(9.0, seed=5), n_likeliest=2):
        page.add(piece)
    shown = re.sub(r"<[^>]*>", "", page.html)
    assert shown == "a" + escape(text.text)


def call(address: str, *values: Any) -> tuple[str, Any]:
    """One request as a program makes it: how it ended, and what came last."""
    with httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/gradio_api/call/write", content=json.dumps({"data": values}), headers=JSON)
        if answer.status_code != 200:
            return f"status {answer.status_code}", answer.text
        event, data = "", None
        with client.stream("GET", f"/gradio_api/call/write/{answer.json()['event_id']}") as lines:
            for line in lines.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
        return event, data


def wanted(prompt: Any = "the cat", n_new: Any = 20, **changes: Any) -> list[Any]:
    values = {"first": "one", "second": "none", "n_new": n_new, "method": "Nucleus", "seed": 0} | GIVEN | changes
    return [prompt, *values.values()]


def test_limits_hold_on_every_route(address: str) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        for route in ("run/write", "run/write/", "api/write", "upload", "component_server", "call/../upload"):
            assert client.post(f"/gradio_api/{route}", json={"data": wanted()}).status_code == 404, route
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404
        assert client.post("/gradio_api/call/write", json={"data": ["x" * 10**6]}).status_code == 413
        assert client.post("/gradio_api/call/write", content=iter([b"{}"]), headers=JSON).status_code == 413


def test_only_the_host_that_was_asked_for_is_answered(address: str) -> None:
    port = address.rpartition(":")[2]
    with httpx.Client(base_url=address, timeout=60) as client:
        for host in ("evil.example", f"evil.example:{port}", f"localhost.evil.example:{port}", "10.0.0.1", "", "["):
            for path in ("/", "/config", "/gradio_api/info"):
                assert client.get(path, headers={"Host": host}).status_code == 421, host
        for host in (f"localhost:{port}", "localhost", "127.0.0.1", f"[::1]:{port}"):
            assert client.get("/", headers={"Host": host}).status_code == 200, host


@pytest.mark.parametrize(
    ("host", "header", "answered"),
    [
        ("box.lan", "BOX.lan:7860", True),
        ("box.lan", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1:7860", True),
        ("::", "[fe80::1]:7860", True),
        ("0.0.0.0", "evil.example", False),
    ],
)
def test_a_host_that_is_served(host: str, header: str, answered: bool) -> None:
    assert is_served(header, host) is answered


@pytest.mark.slow
def test_hostile_requests_get_an_answer_and_nobody_elses_text(served: Served, tokenizer: Tokenizer) -> None:
    """200 of them, up to 50 at once, some cut off while their text is written."""
    address = served.address
    random.seed(8)
    odd = [None, math.nan, math.inf, -1, 1e308, "", "x" * 10**6, [], {}, "\ud800", "<script>", True, 10**30, [[[]]]]
    requests: list[tuple[str, list[Any]]] = []
    for number in range(200):
        mark = f"mark{number:03}q "
        kind = number % 4
        values = wanted(mark, random.choice([1, 30, 300]))
        if kind == 1:
            values[random.randrange(1, len(values))] = random.choice(odd)
        elif kind == 2:
            values = random.choices(odd, k=random.choice([0, 3, len(values), 40]))
        requests.append((mark, values))
    assert call(address, *wanted())[0] == "complete"
    before = served.memory

    def ask(request: tuple[str, list[Any]]) -> None:
        mark, values = request
        if mark.endswith("3q ") and len(values) == 10:  # leaves while it is being written
            with httpx.Client(base_url=address, timeout=60) as client:
                values[3] = 3000
                answer = client.post("/gradio_api/call/write", json={"data": values})
                with client.stream("GET", f"/gradio_api/call/write/{answer.json()['event_id']}") as lines:
                    next(lines.iter_lines())
            return
        event, data = call(address, *values)
        assert event in ("complete", "error") or event.startswith("status 4"), (event, data)
        marks = set(re.findall(r"mark\d{3}q", json.dumps(data)))
        assert marks <= {mark.strip()}, marks
        if event == "complete":
            assert mark.strip() in marks

    with ThreadPoolExecutor(50) as many:
        list(many.map(ask, requests))
    event, data = call(address, *wanted("the cat", 20))
    (text,) = generate(build_with(tokenizer, {}), "the cat", 20, sampling=Sampling(0.8, seed=0, top_p=0.9))
    assert event == "complete"
    assert re.sub(r"<[^>]*>", "", data[0]) == "the cat" + escape(text.text)
    assert served.memory - before < 200_000


@pytest.mark.slow
def test_a_text_ends_when_its_time_is_over(tokenizer: Tokenizer) -> None:
    from gptstar.inference.demo.page import _frames

    began = time.monotonic()
    limits = Limits(tokens=100_000, seconds=1)
    request = Request.parse(limits, "the", 100_000, "Greedy", seed=0, **GIVEN)
    *_, last = _frames({"one": build_with(tokenizer, {})}, request, limits)
    assert time.monotonic() - began < 3
    assert "stopped after 1 seconds" in last[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()
    playwright.stop()


class Visitor:
    """A window of its own."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.complaints: list[str] = []
        self.page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.elsewhere(request.url, address))
        self.page.goto(address)
        self.page.wait_for_selector("#write")

    def elsewhere(self, url: str, address: str) -> None:
        if not url.startswith((address, "data:", "blob:")):
            self.complaints.append(f"asks {url}")

    def ask(self, prompt: str, length: int) -> None:
        self.page.get_by_label("Prompt").fill(prompt)
        self.page.get_by_label("number input for Length (tokens)").fill(str(length))
        self.page.click("#write")

    def count(self, number: int = 0) -> int:
        return int(self.page.locator(f"#text-{number} .written i").count())

    def until(self, condition: Any, seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end
            self.page.wait_for_timeout(50)

    def until_it_rests(self) -> None:
        self.until(lambda: self.count() > 5)
        before = 0
        while (now := self.count()) != before:
            before = now
            self.page.wait_for_timeout(1500)

    @property
    def text(self) -> str:
        return str(self.page.locator("#text-0 .written").text_content())


@pytest.mark.slow
def test_clicks(browser: Any, address: str, tokenizer: Tokenizer) -> None:
    visitor = Visitor(browser, address)
    page = visitor.page
    visitor.ask("the cat", 300)
    visitor.until(lambda: visitor.count() > 5)
    early = visitor.count()
    visitor.until(lambda: "300 tokens" in page.inner_text("#about-0"))
    assert early < visitor.count()
    (expected,) = generate(build_with(tokenizer, {}), "the cat", 300, sampling=Sampling(0.8, seed=0, top_p=0.9))
    assert visitor.text == "the cat" + expected.text

    visitor.ask("the dog", 3000)
    visitor.until(lambda: visitor.count() > 5 and visitor.text.startswith("the dog"))
    page.click("#stop")
    page.wait_for_timeout(700)
    there = visitor.count()
    page.wait_for_timeout(1000)
    assert 5 < there == visitor.count() < 3000

    nasty = '<img src=x onerror="document.title=1">${1+1}{{7*7}}'
    visitor.ask(nasty, 3)
    visitor.until(lambda: visitor.text.startswith(nasty))
    assert page.title() == "GPT*"
    assert page.locator("#text-0 img").count() == 0

    for method, shown in {
        "Greedy": [],
        "Top-k": ["Temperature", "k"],
        "Typical": ["Temperature", "Probability kept"],
    }.items():
        page.get_by_label(method, exact=True).click()
        sliders = ("Temperature", "k", "Probability of the nucleus", "Probability kept")
        visitor.until(
            lambda shown=shown, sliders=sliders: (
                [each for each in sliders if page.get_by_label(f"number input for {each}", exact=True).is_visible()]
                == shown
            )
        )
    page.locator("#text-0 .written i").first.hover()
    assert "%" in page.evaluate(
        "getComputedStyle(document.querySelector('#text-0 .written i:hover'), '::after').content"
    )
    before = page.get_by_label("Seed").input_value()
    page.click("#roll")
    visitor.until(lambda: page.get_by_label("Seed").input_value() != before)
    assert visitor.complaints == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_two_visitors_and_two_models(width: int, browser: Any, address: str, tmp_path: Any) -> None:
    first, second = (Visitor(browser, address, width) for _ in range(2))
    second.page.get_by_label("Beside it").click()
    second.page.get_by_role("option", name="<b>other").click()
    first.ask("the mat", 200)
    second.ask("the dog", 200)
    for visitor in (first, second):
        visitor.until_it_rests()
    assert first.text.startswith("the mat")
    assert second.text.startswith("the dog")
    assert second.count(1) > 5
    assert second.page.locator("#text-1 .written").text_content() != second.text
    assert first.page.locator("#text-1").count() == 0 or not first.page.locator("#text-1").is_visible()
    for visitor in (first, second):
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
        visitor.page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert visitor.complaints == []
