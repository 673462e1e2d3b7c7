# SPDX-License-Identifier: Apache-2.0
"""A browser's traffic without a browser's work: the page's socket, and its pictures at 10 Hz."""

import contextlib
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar

from websockets.sync.client import connect

PICTURE_PERIOD_S = 0.1


def answer_pings(socket):
    """Engine.IO's: 2 asks, 3 answers; everything else is read and dropped."""
    for message in socket:
        if message == "2":
            socket.send("3")


def main(url):
    """Looks until it is ended."""
    jar = CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    html = opener.open(url, timeout=60).read().decode()
    cookie = "; ".join(f"{one.name}={one.value}" for one in jar)
    client_id = re.search(r"client_id[^0-9a-f]{1,8}([0-9a-f-]{36})", html)[1]
    root = url.partition("/?")[0]
    query = f"client_id={client_id}&EIO=4&transport=websocket&next_message_id=0&tab_id=a"
    query += "&document_id=d&implicit_handshake=true"
    with connect(
        f"{root.replace('http', 'ws')}/_nicegui_ws/socket.io/?{query}",
        origin=root,
        additional_headers={"Cookie": cookie},
    ) as socket:
        socket.send("40")
        threading.Thread(target=answer_pings, args=(socket,), daemon=True).start()
        number = 0
        while True:
            number += 1
            with contextlib.suppress(urllib.error.HTTPError):  # 404: no picture yet
                opener.open(f"{root}/picture/camera?n={number}", timeout=10).read()
            time.sleep(PICTURE_PERIOD_S)


if __name__ == "__main__":
    main(sys.argv[1])
