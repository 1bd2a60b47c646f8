"""A guard in front of the page's server: it admits only the configured hosts and the routes that the page needs."""

import contextlib
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from gptstar.inference.demo.request import Limits

LOCAL = ("localhost", "127.0.0.1", "::1")

POSTED = ("queue/join", "call/", "run/", "cancel")
"""Routes below `/gradio_api/` to which the page and programs may post. File uploads are not among them."""

BYTES_A_CHARACTER = 12
"""Most bytes of a character in JSON: two escapes."""

BYTES_OF_OTHERS = 2**16
"""Most bytes of a request besides its prompt."""


class Guard:
    """An ASGI application that answers refused requests, and passes all others on to another application.

    Args:
        host: the host that serves the page. Requests for hosts other than it and this machine's own are refused, to
            prevent DNS rebinding.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], host: str, limits: Limits) -> None:
        self._app, self._host = app, host
        self._most_bytes = BYTES_A_CHARACTER * limits.characters + BYTES_OF_OTHERS

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Handle a request."""
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        status, reason = refusal
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": reason.encode()})

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        headers = [(name, value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not is_served(hosts[0], self._host):
            return 421, "this host is not served here"
        if scope.get("method", "GET") in ("GET", "HEAD", "OPTIONS"):
            return None
        path = scope["path"].partition("/gradio_api/")
        if path[0] or not path[2].startswith(POSTED):
            return 404, "this route does not exist"
        sizes = [value for name, value in headers if name == b"content-length"]
        if len(sizes) != 1 or not sizes[0].isdecimal() or int(sizes[0][:20]) > self._most_bytes:
            return 413, f"a request may have {self._most_bytes:,} bytes at most, and must state its content-length"
        return None


def is_served(header: str, host: str) -> bool:
    """Return whether a `Host` header names the page's host; if it serves all addresses, any of this machine's."""
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{header}").hostname or ""
        if name in (host.lower(), *LOCAL):
            return True
        if host in ("0.0.0.0", "::"):
            own = socket.gethostname().lower()
            if name in (own, f"{own}.local"):
                return True
            ip_address(name)  # an IP address can't be rebound
            return True
    return False
