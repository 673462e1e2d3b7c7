# SPDX-License-Identifier: Apache-2.0
"""The web server around the page: pictures, the token gate, and an end on Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from nvila_ros.dashboard.access import TokenGate
from nvila_ros.dashboard.commands import Commands, InstructionGate
from nvila_ros.dashboard.state import DashboardState
from nvila_ros.errors import SystemLibraryError, install_hint

MAX_CONNECTIONS = 100
KEPT_MESSAGES = 50  # of a browser that was away for a moment
RECONNECT_TIMEOUT_S = 5.0
MAX_SOCKET_BYTES = 64 * 1024  # of one message from a browser
PING_INTERVAL_S, PING_TIMEOUT_S = 5, 10  # a browser that does not answer is forgotten


def make_app(state: DashboardState, commands: Commands, token: str, port: int) -> TokenGate:
    """The ASGI application; one per process, since NiceGUI knows only one."""
    try:
        from fastapi import FastAPI, Response
        from nicegui import core, ui
    except ImportError as error:
        raise SystemLibraryError(
            f"{error.name} was not found; {install_hint('dashboard')}"
        ) from error

    from nvila_ros.dashboard.page import DashboardPage

    gate = InstructionGate()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/picture/{name}")
    def picture(name: str) -> Response:
        try:
            jpeg = state.picture(name).jpeg
        except KeyError:
            return Response(status_code=404)
        headers = {"cache-control": "no-store"}
        return Response(jpeg, 200 if jpeg else 404, headers, media_type="image/jpeg")

    def page() -> None:
        DashboardPage(state, commands, gate)

    ui.run_with(
        app,
        root=page,
        title="nvila",
        favicon="🧭",
        dark=None,
        binding_refresh_interval=None,
        reconnect_timeout=RECONNECT_TIMEOUT_S,
        message_history_length=KEPT_MESSAGES,
        tailwind=False,
        show_welcome_message=False,
    )
    core.sio.eio.max_http_buffer_size = MAX_SOCKET_BYTES
    core.sio.eio.ping_interval, core.sio.eio.ping_timeout = PING_INTERVAL_S, PING_TIMEOUT_S
    return TokenGate(app, token, port)


def make_server(app: Any) -> Any:
    """A uvicorn.Server; `run(sockets=[...])` serves until `should_exit`. It hears no signals."""
    import uvicorn

    class QuietServer(uvicorn.Server):
        """Without uvicorn's own handlers, which cut the end short at a second Ctrl-C."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return QuietServer(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
            ws_max_size=MAX_SOCKET_BYTES,
            server_header=False,
        )
    )


def end_on_signals(server: Any) -> None:
    """Ctrl-C and SIGTERM end it; a launch file sends one after the terminal did."""

    def end(_number: int, _frame: Any) -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
