# SPDX-License-Identifier: Apache-2.0
"""Who gets in: loopback alone, a token in the URL, no other page of the same machine."""

import asyncio

import pytest

from nvila_ros.dashboard.access import TokenGate, bind, checked_token, is_loopback, page_url
from nvila_ros.errors import ConfigError

TOKEN = "a-token-of-24-characters"
COOKIE = f"nvila_dashboard_8642={TOKEN}"


def ask(path="/", query="", kind="http", method="GET", **headers):
    """Status or first message type of the gate's answer, and whether the inner app was reached."""
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope["type"])

    async def receive():
        return {"type": f"{kind}.connect" if kind == "websocket" else "http.request"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": kind,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    if kind == "http":
        scope["method"] = method
    asyncio.run(TokenGate(app, TOKEN, 8642)(scope, receive, send))
    return sent, bool(reached)


def test_the_token_becomes_a_cookie_that_scripts_cannot_read():
    (start, _), reached = ask(query=f"token={TOKEN}")
    headers = {name: value.decode() for name, value in start["headers"]}
    assert start["status"] == 303 and headers[b"location"] == "/" and not reached
    cookie = headers[b"set-cookie"]
    assert cookie.startswith(COOKIE) and "HttpOnly" in cookie and "SameSite=Strict" in cookie


def test_with_the_cookie_one_is_in():
    assert ask(cookie=COOKIE)[1]
    assert ask(path="/picture/camera", cookie=f"other=1; {COOKIE}")[1]


@pytest.mark.parametrize(
    "query, cookie",
    [
        ("", ""),
        ("token=", ""),
        ("token=wrong", ""),
        (f"token={TOKEN}x", ""),
        ("token=%ff%fe", ""),
        ("", "nvila_dashboard_8642=wrong"),
        ("", f"nvila_dashboard_1={TOKEN}"),
        ("", ";;;=\x01"),
        ("", "nvila_dashboard_8642=\xe9\xe9"),
    ],
)
def test_without_it_nothing_is_served(query, cookie):
    for path in ("/", "/picture/camera", "/_nicegui/anything", "/_nicegui_ws/socket.io/"):
        sent, reached = ask(path=path, query=query, cookie=cookie)
        assert not reached and sent[0]["status"] == 401


def test_the_token_in_the_url_opens_the_page_only():
    sent, reached = ask(path="/picture/camera", query=f"token={TOKEN}")
    assert not reached and sent[0]["status"] == 401


def test_a_socket_needs_cookie_and_our_own_origin():
    host = "127.0.0.1:8642"

    def reached(**headers):
        return ask(path="/_nicegui_ws/socket.io/", kind="websocket", **headers)[1]

    assert reached(cookie=COOKIE, host=host, origin=f"http://{host}")
    assert not reached(cookie=COOKIE, host=host, origin="http://127.0.0.1:9999")
    assert not reached(cookie=COOKIE, host=host)
    assert not reached(host=host, origin=f"http://{host}")


def test_another_page_on_this_machine_cannot_post():
    host = "127.0.0.1:8642"
    for origin in ("http://127.0.0.1:9999", "null", "http://evil.example"):
        assert not ask(method="POST", cookie=COOKIE, host=host, origin=origin)[1]
    assert not ask(method="POST", cookie=COOKIE, host=host)[1]
    assert ask(method="POST", cookie=COOKIE, host=host, origin=f"http://{host}")[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_loopback_needs_nothing_and_gets_a_fresh_token(host):
    first, second = (checked_token("", host, False) for _ in range(2))
    assert first != second and len(first) >= 24


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "robot.local", ""])
def test_the_network_needs_to_be_allowed_and_a_token(host):
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--allow-remote"):
        checked_token(TOKEN, host, False)
    with pytest.raises(ConfigError, match="choose a token"):
        checked_token("", host, True)
    assert checked_token(TOKEN, host, True) == TOKEN


@pytest.mark.parametrize("token", ["short", "sixteen letters!", "x" * 15, "a;b" * 8, "é" * 20])
def test_a_weak_token_is_refused(token):
    with pytest.raises(ConfigError, match="at least 16"):
        checked_token(token, "127.0.0.1", False)


def test_a_port_that_is_taken_is_named():
    taken = bind("127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError, match="--port"):
            bind("127.0.0.1", taken.getsockname()[1])
    finally:
        taken.close()


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1"):
        bind("203.0.113.1", 0)


def test_the_address_to_open_holds_the_token():
    assert page_url("127.0.0.1", 8642, TOKEN) == f"http://127.0.0.1:8642/?token={TOKEN}"
    assert page_url("::1", 8642, TOKEN).startswith("http://[::1]:8642/")
