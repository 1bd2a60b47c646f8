"""Downloads from a server on this machine that cuts connections, changes its files, and forgets them."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

import gptstar
from gptstar.checkpoint.published import fetch as fetching
from gptstar.checkpoint.published.fetch import fetch
from gptstar.checkpoint.published.registry import MODELS, File
from gptstar.cli import main
from gptstar.data.tokenizer import Tokenizer
from gptstar.errors import CheckpointError
from support import SHARED
from support.models import legacy_state

CONTENT = bytes(range(256)) * 40_000  # 10 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Web:
    """What the server does.

    Attributes:
        cut_after: bytes after which a connection is cut, for one connection each; then none is.
        parts: whether it gives parts of a file.
    """

    content: bytes = CONTENT
    tag: str = '"one"'
    cut_after: list[int] = field(default_factory=list)
    parts: bool = True
    status: int = 200
    says_length: bool = True
    sent: list[int] = field(default_factory=list)
    address: str = ""
    moved_to: str | None = None


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(fetching, "PAUSES", (0.01, 0.01))
    web = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start, asked = 0, self.headers.get("Range")
            if web.moved_to:
                self.send_response(302)
                self.send_header("Location", web.moved_to)
                self.end_headers()
                return
            if web.status != 200:
                self.send_error(web.status)
                return
            if asked and web.parts and self.headers.get("If-Range") in (None, web.tag):
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(web.content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(web.content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(web.content) - 1}/{len(web.content)}")
            else:
                self.send_response(200)
            if web.says_length:
                self.send_header("Content-Length", str(len(web.content) - start))
            self.send_header("ETag", web.tag)
            self.end_headers()
            stop = start + web.cut_after.pop(0) if web.cut_after else len(web.content)
            self.wfile.write(web.content[start:stop])
            web.sent.append(len(web.content[start:stop]))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web.address = f"http://127.0.0.1:{server.server_port}/weights.pth.tar"
    yield web
    server.shutdown()
    server.server_close()


def get(web: Web, path: Path, **known: object) -> str:
    told: list[tuple[int, int | None]] = []
    found = fetch(File(web.address, **known), path, progress=lambda *now: told.append(now))  # type: ignore[arg-type]
    assert told == [] or told[-1][0] == len(web.content)
    assert sorted(each.name for each in path.parent.iterdir()) == [f".{path.name}.lock", path.name]
    assert path.read_bytes() == web.content
    return found


def refused(web: Web, path: Path, **known: object) -> str:
    with pytest.raises(CheckpointError) as error:
        get(web, path, **known)
    assert not path.exists()
    return str(error.value)


def test_a_connection_that_is_cut_goes_on_where_it_was(web: Web, tmp_path: Path) -> None:
    web.cut_after = [0, 3_000_000, 1, 0, 2_000_000]
    assert get(web, tmp_path / "x", size=len(CONTENT), sha256=SHA256) == SHA256
    assert sum(web.sent) == len(CONTENT)
    assert get(web, tmp_path / "x") == SHA256  # it is there
    assert len(web.sent) == 6


@pytest.mark.parametrize("what", ["changed", "no parts", "weak tag"])
def test_a_part_of_another_version_is_not_gone_on_with(what: str, web: Web, tmp_path: Path) -> None:
    web.cut_after = [4_000_000, 0, 0, 0]
    if what == "weak tag":
        web.tag = 'W/"one"'
    refused(web, tmp_path / "x")
    assert (tmp_path / ".x.partial").stat().st_size == (4_000_000 if what != "weak tag" else 0)
    if what == "changed":
        web.tag, web.content = '"two"', CONTENT[::-1]
    web.parts = what != "no parts"
    get(web, tmp_path / "x")


def test_what_is_whole_already_is_taken(web: Web, tmp_path: Path) -> None:
    """As where the process died between the last byte and the new name."""
    (tmp_path / ".x.partial").write_bytes(CONTENT)
    (tmp_path / ".x.partial.tag").write_text('"one"')
    assert get(web, tmp_path / "x") == SHA256
    assert web.sent == []


def test_a_part_that_is_longer_than_the_file_is_fetched_anew(web: Web, tmp_path: Path) -> None:
    (tmp_path / ".x.partial").write_bytes(CONTENT + b"more")
    (tmp_path / ".x.partial.tag").write_text('"one"')
    assert get(web, tmp_path / "x") == SHA256


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_address_that_is_gone_is_said_to_be(status: int, web: Web, tmp_path: Path) -> None:
    web.status = status
    assert f"answers {status}" in (said := refused(web, tmp_path / "x"))
    assert "gptstar import FILE OUT" in said


def test_a_server_in_trouble_and_one_that_is_not_there_are_tried_again(web: Web, tmp_path: Path) -> None:
    web.status = 503
    assert "status 503" in refused(web, tmp_path / "x")
    web.address = "http://127.0.0.1:9/x"
    assert "check the network" in refused(web, tmp_path / "x")
    web.address = "ftp://127.0.0.1/x"
    assert "not an http address" in refused(web, tmp_path / "x")


def test_another_file_than_was_published_is_not_taken(web: Web, tmp_path: Path) -> None:
    assert SHA256 in refused(web, tmp_path / "x", sha256="0" * 64)
    assert not (tmp_path / ".x.partial").exists()
    (tmp_path / "x").write_bytes(b"mine")
    with pytest.raises(CheckpointError, match="move it away"):
        fetch(File(web.address, sha256=SHA256), tmp_path / "x", progress=lambda *_: None)
    assert (tmp_path / "x").read_bytes() == b"mine"


def test_a_length_that_is_not_said_is_no_hindrance(web: Web, tmp_path: Path) -> None:
    web.says_length = False
    get(web, tmp_path / "x", sha256=SHA256)
    web.content = CONTENT[:99]
    assert "99 " in refused(web, tmp_path / "y/x", size=len(CONTENT))


def test_a_full_disk_is_said_before_anything_comes(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 5_000_000})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage)
    assert "0.0 GB free" in refused(web, tmp_path / "x")
    assert not (tmp_path / ".x.partial").exists()


def test_two_at_once_are_one_too_many(web: Web, tmp_path: Path) -> None:
    holder = fetching.FileLock(tmp_path / ".x.lock")
    with holder:
        assert "another process" in refused(web, tmp_path / "x")


@pytest.mark.parametrize("residual", ["parallel", "sequential"])
def test_the_command_downloads_imports_and_tidies_up(
    residual: str,
    web: Web,
    tmp_path: Path,
    shared: Path,
    capsys: pytest.CaptureFixture[str],
    refusal: Callable[..., str],
) -> None:
    name = {"parallel": "127", "sequential": "354"}[residual]
    state = legacy_state(residual, {"parallel": "alibi", "sequential": "learned"}[residual])
    wide = torch.randn(50257, state["wte.weight"].shape[1])
    state["wte.weight"] = state["lm_head.weight"] = wide
    torch.save(state, tmp_path / "file")
    web.content = (tmp_path / "file").read_bytes()
    web.cut_after = [1000, 100_000]
    words = ["download", name, str(tmp_path / "out.ckpt"), "--tokenizer", str(SHARED / "tokenizer/gpt2.json")]
    if residual == "parallel":
        main([*words, "--url", web.address])
        said = capsys.readouterr().out
        assert hashlib.sha256(web.content).hexdigest() in said
        model = gptstar.load(tmp_path / "out.ckpt")
        assert torch.equal(model.token_embedding.weight, wide)
        assert gptstar.generate(model, "The", 3)[0].tokens
        assert {each.name for each in tmp_path.iterdir()} == {"file", "out.ckpt", ".weights.pth.tar.lock"}
        assert "exists" in refusal(main, [*words, "--url", web.address])
        return
    assert "drop --full-state" in refusal(main, [*words, "--full-state"])
    web.status = 404
    assert "the address is gone" in refusal(main, [*words, "--url", web.address])
    (tmp_path / "other.json").write_text(Tokenizer.train(["one two " * 40], 260).json_text)
    words[-1] = str(tmp_path / "other.json")
    assert "GPT-2's tokenizer" in refusal(main, [*words, "--url", web.address])


def test_a_file_of_the_users_own_is_used_and_stays(tmp_path: Path, web: Web, refusal: Callable[..., str]) -> None:
    state = legacy_state("parallel", "alibi")
    state["wte.weight"] = state["lm_head.weight"] = torch.randn(50257, state["wte.weight"].shape[1])
    own, out = tmp_path / "weights.pth.tar", tmp_path / "out.ckpt"
    torch.save(state, own)
    words = ["download", "127", "--url", web.address, "--tokenizer", str(SHARED / "tokenizer/gpt2.json"), str(out)]
    main(words)  # with OUT behind the options
    assert web.sent == []
    assert own.exists()
    assert out.exists()
    out.unlink()
    own.write_text("<html>")
    assert "move it away" in refusal(main, words)
    assert own.exists()


@pytest.mark.slow
def test_trying_again_recovers(tmp_path: Path, web: Web, refusal: Callable[..., str]) -> None:
    state = legacy_state("parallel", "alibi")
    state["wte.weight"] = state["lm_head.weight"] = torch.randn(50257, state["wte.weight"].shape[1])
    torch.save(state, tmp_path / "file")
    whole = (tmp_path / "file").read_bytes()
    words = ["download", "127", str(tmp_path / "out.ckpt"), "--tokenizer", str(SHARED / "tokenizer/gpt2.json")]
    words += ["--url", web.address]
    web.content = b"<html>please log in</html>"  # with status 200, from a captive portal
    assert "is not the published one" in refusal(main, words)
    assert not (tmp_path / "weights.pth.tar").exists()
    web.content = whole
    (tmp_path / ".weights.pth.tar.partial").write_bytes(whole[:1000])
    (tmp_path / ".weights.pth.tar.partial.tag").touch()  # killed while it wrote
    main(words)
    assert {each.name for each in tmp_path.iterdir()} == {"file", "out.ckpt", ".weights.pth.tar.lock"}


@pytest.mark.parametrize("address", ["http://[::1", "ftp://a/b", "http:///b"])
def test_an_address_that_is_none_is_refused(
    address: str, tmp_path: Path, refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PAUSES", (0.01,))
    words = ["download", "127", "--tokenizer", str(SHARED / "tokenizer/gpt2.json"), "--url", address]
    assert address in refusal(main, [*words, str(tmp_path / "out.ckpt")])


def test_redirects_in_a_circle_are_refused(web: Web, tmp_path: Path) -> None:
    web.moved_to = web.address
    assert "redirects in a circle" in refused(web, tmp_path / "a")


def test_every_name_has_an_address() -> None:
    files = list(itertools.chain.from_iterable((each.weights, each.full_state) for each in MODELS.values()))
    assert set(MODELS) == {"127", "303", "354"}
    assert all(file is None or file.url.startswith("https://") for file in files)
