# SPDX-License-Identifier: Apache-2.0
"""Who may open the dashboard: a token for every request, this machine alone unless allowed."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from nvila_ros.errors import ConfigError

MIN_TOKEN_CHARACTERS = 16
_PLAIN_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def checked_token(token: str, host: str, allow_remote: bool) -> str:
    """The token, or a fresh one on loopback; ConfigError for an address or token that is unsafe."""
    if not is_loopback(host):
        if not allow_remote:
            raise ConfigError(
                f"host {host!r} is open to the network, and whoever opens the page drives the "
                "robot; if that is meant, add --allow-remote and set "
                "NVILA_DASHBOARD_TOKEN=$(openssl rand -hex 16)"
            )
        if not token:
            raise ConfigError(
                f"host {host!r} is open to the network: choose a token, for instance "
                "export NVILA_DASHBOARD_TOKEN=$(openssl rand -hex 16)"
            )
    if not token:
        return secrets.token_urlsafe(24)
    if len(token) < MIN_TOKEN_CHARACTERS or not set(token) <= _PLAIN_TOKEN:
        raise ConfigError(
            f"the token has {len(token)} characters; expected at least {MIN_TOKEN_CHARACTERS} "
            "letters, digits, - or _"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it; of names only localhost is trusted."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; ConfigError says what is in the way. Port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(64)
    except (OSError, OverflowError) as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error}; take another one with --port, "
            "0 for any that is free"
        ) from error
    return made


def page_url(host: str, port: int, token: str) -> str:
    """What to open; the token is in it."""
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    return f"http://{shown}:{port}/?{urlencode({'token': token})}"


class TokenGate:
    """ASGI: lets in who brings the token in the URL, then by a cookie; all others get 401.

    A cookie knows no ports: sockets and commands must also come from our own page (Origin).
    """

    def __init__(self, app: App, token: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token, f"nvila_dashboard_{port}"

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, socket or the server's own start and end."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = query.get("token", [""])[0]
        is_page = scope["type"] == "http" and scope["path"] == "/"
        if is_page and self._is_token(given):
            await self._welcome(send)
        elif self._is_token(self._from_cookie(headers)) and _own_origin(scope, headers):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _refuse(send)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _from_cookie(self, headers: dict[str, str]) -> str:
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return cookie.value if cookie else ""

    async def _welcome(self, send: Send) -> None:
        """The token moves from the address into a cookie: no history or referrer shows it."""
        cookie = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
        headers += [(b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _own_origin(scope: Message, headers: dict[str, str]) -> bool:
    """Pages of other servers on this machine share our cookie, but not our origin."""
    origin = headers.get("origin")
    if origin is None:
        return scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return urlsplit(origin).netloc == headers.get("host")


async def _refuse(send: Send) -> None:
    text = b"The token is missing or wrong. Open the address that `nvila dashboard` printed.\n"
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": text})
