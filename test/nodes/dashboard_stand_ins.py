# SPDX-License-Identifier: Apache-2.0
"""Around the browser tests: the dashboard's process, the truth, a page that never reads."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.request
from pathlib import Path

from nav_msgs.msg import Odometry
from std_msgs.msg import String

from nvila_ros.ros_environment import process_environment, share_folder
from nvila_ros.ros_main import SENSOR_QOS, STATE_QOS


class Dashboard:
    """The process that `nvila dashboard` is."""

    def __init__(self, ros):
        environment = process_environment()
        environment.update(ROS_DOMAIN_ID=str(ros.domain_id), PYTHONUNBUFFERED="1")
        command = [sys.executable, "-m", "nvila_ros.cli", "dashboard", "--port", "0"]
        command += ["--namespace", ros.namespace]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=share_folder(), env=environment, **pipes)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", line):
                break
        else:
            raise AssertionError("".join(self.lines))
        self.url, self.port, self.token = found.group(0), int(found[1]), found[2]
        threading.Thread(target=lambda: self.lines.extend(self.process.stdout)).start()

    def cookie(self):
        return f"nvila_dashboard_{self.port}={self.token}"

    def memory_bytes(self):
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def end(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)


class Truth:
    """What really happens, heard over ROS and not from the page."""

    def __init__(self, ros):
        node = ros.node("truth")
        self.speed, self.place, self.episode, self.decisions = None, None, {}, 0
        node.create_subscription(Odometry, "odom", self._on_odometry, SENSOR_QOS)
        node.create_subscription(String, "simulator/episode", self._on_episode, STATE_QOS)
        node.create_subscription(String, "navigator/decision", self._on_decision, STATE_QOS)

    def _on_odometry(self, message):
        self.place = (message.pose.pose.position.x, message.pose.pose.position.y)
        self.speed = (message.twist.twist.linear.x, message.twist.twist.angular.z)

    def _on_episode(self, message):
        self.episode = json.loads(message.data)

    def _on_decision(self, _message):
        self.decisions += 1

    def is_moving(self):
        return self.speed is not None and max(map(abs, self.speed)) > 0.05

    def is_still(self):
        return self.speed is not None and max(map(abs, self.speed)) < 1e-3


def never_read(dashboard, ended, unread_bytes):
    """A page whose socket was opened by hand, and from which nothing is ever read again."""
    host = f"127.0.0.1:{dashboard.port}"
    request = urllib.request.Request(f"http://{host}/", headers={"cookie": dashboard.cookie()})
    html = urllib.request.urlopen(request, timeout=60).read().decode()
    client_id = re.search(r"client_id[^0-9a-f]{1,8}([0-9a-f-]{36})", html)[1]
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plain.connect(("127.0.0.1", dashboard.port))
    query = f"client_id={client_id}&EIO=4&transport=websocket&next_message_id=0&tab_id=a"
    query += "&document_id=d&implicit_handshake=true"
    lines = [f"GET /_nicegui_ws/socket.io/?{query} HTTP/1.1", f"Host: {host}"]
    lines += [f"Origin: http://{host}", f"Cookie: {dashboard.cookie()}", "Connection: Upgrade"]
    lines += ["Upgrade: websocket", "Sec-WebSocket-Version: 13"]
    lines += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", ""]
    plain.sendall("\r\n".join(lines).encode())
    assert b" 101 " in plain.recv(64)
    plain.sendall(text_frame("40"))  # joins; what comes back stays in the kernel's buffers
    while not ended.wait(0.2):
        waiting = bytearray(4)
        fcntl.ioctl(plain, termios.FIONREAD, waiting)
        unread_bytes.append(int.from_bytes(waiting, sys.byteorder))
    plain.close()


def text_frame(text):
    """A masked WebSocket frame, the mask being zero."""
    data = text.encode()
    length = (
        bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    )
    return b"\x81" + length + bytes(4) + data
