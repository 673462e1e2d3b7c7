# SPDX-License-Identifier: Apache-2.0
"""The web server without ROS and without a browser: plain requests and sockets."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future

import pytest

pytest.importorskip("nicegui", reason="no NiceGUI here: needs the extra 'dashboard'")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from nvila_ros.dashboard.access import bind
from nvila_ros.dashboard.commands import Answer
from nvila_ros.dashboard.server import MAX_SOCKET_BYTES, make_app, make_server
from nvila_ros.dashboard.state import DashboardState

TOKEN = "a-token-of-24-characters"


class StandInCommands:
    def instruct(self, text):
        pass

    def emergency_stop(self):
        pass

    def call(self, service):
        told = Future()
        told.set_result(Answer(True, service))
        return told

    def move_to_seed(self, seed):
        return self.call(str(seed))


class Served:
    """NiceGUI knows one application per process: one server for the whole file."""

    def __init__(self):
        self.state = DashboardState()
        listening = bind("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        app = make_app(self.state, StandInCommands(), TOKEN, self.port)
        self.server = make_server(app)
        arguments = {"sockets": [listening]}
        self.thread = threading.Thread(target=self.server.run, kwargs=arguments, daemon=True)
        self.thread.start()

    @property
    def cookie(self):
        return f"nvila_dashboard_{self.port}={TOKEN}"

    def get(self, path, **headers):
        request = urllib.request.Request(self.root + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def client_id(self):
        html = self.get("/", cookie=self.cookie)[1].decode()
        return re.search(r"client_id[^0-9a-f]{1,8}([0-9a-f-]{36})", html)[1]

    def socket(self, client_id, origin=None, cookie=None):
        query = f"client_id={client_id}&EIO=4&transport=websocket&next_message_id=0&tab_id=a"
        return connect(
            f"ws://127.0.0.1:{self.port}/_nicegui_ws/socket.io/?{query}"
            "&document_id=d&implicit_handshake=true",
            origin=origin or self.root,
            additional_headers={"Cookie": cookie or self.cookie},
        )


@pytest.fixture(scope="module")
def served():
    made = Served()
    yield made
    made.server.should_exit = True
    made.thread.join(10)


def test_without_a_token_there_is_nothing(served):
    for path in ("/", "/picture/camera", "/_nicegui/3.18.0/static/nicegui.js", "/docs"):
        status, text = served.get(path)
        assert status == 401 and b"token" in text


def test_the_page_is_served_without_foreign_addresses(served):
    status, html = served.get("/", cookie=served.cookie)
    assert status == 200 and b"Emergency stop" in html
    addresses = re.findall(rb"(?:src|href)=[\"'](https?:)?//([^\"'/]+)", html)
    assert not addresses


def test_pictures_are_served_once_they_exist(served):
    assert served.get("/picture/camera", cookie=served.cookie)[0] == 404
    served.state.hear_picture("camera", b"\xff\xd8 a picture")
    assert served.get("/picture/camera?n=1", cookie=served.cookie) == (200, b"\xff\xd8 a picture")
    for name in ("other", "..%2f..%2fetc%2fpasswd"):
        status, content = served.get(f"/picture/{name}", cookie=served.cookie)
        assert status == 404 or b"root:" not in content


def test_a_page_is_counted_while_its_socket_is_open(served, waiting_for):
    with served.socket(served.client_id()) as socket:
        opening = json.loads(socket.recv(timeout=10)[1:])
        assert opening["maxPayload"] == MAX_SOCKET_BYTES
        assert opening["pingInterval"] + opening["pingTimeout"] <= 15_000
        socket.send("40")
        waiting_for(lambda: served.state.num_watchers == 1)
    waiting_for(lambda: served.state.num_watchers == 0)


@pytest.mark.parametrize(
    "origin, cookie", [("http://127.0.0.1:9", None), (None, "nvila_dashboard=wrong")]
)
def test_a_socket_from_elsewhere_is_closed(served, origin, cookie):
    client_id = served.client_id()
    with pytest.raises(InvalidStatus, match="403"):
        served.socket(client_id, origin, cookie)


@pytest.mark.parametrize(
    "message",
    ["40" + "x" * MAX_SOCKET_BYTES, "42[", '42["event",{"id":1}]', '42["nonsense"]', "\x00", "9"],
)
def test_nonsense_on_a_socket_ends_that_one_at_most(served, message):
    client_id = served.client_id()
    with contextlib.suppress(ConnectionClosed), served.socket(client_id) as socket:
        socket.send("40")
        socket.send(message)
        with contextlib.suppress(TimeoutError):
            socket.recv(timeout=0.2)
    assert served.get("/", cookie=served.cookie)[0] == 200


def test_without_nicegui_the_extra_is_named():
    program = (
        "import sys; sys.modules['nicegui'] = None\n"
        "from nvila_ros.dashboard.server import make_app\n"
        "make_app(None, None, '', 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "SystemLibraryError" in done.stderr and ".[dashboard]" in done.stderr
