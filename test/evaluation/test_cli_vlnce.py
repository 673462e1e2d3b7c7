# SPDX-License-Identifier: Apache-2.0
"""`nvila evaluate` as a command: workers, shards, one summary, with a stand-in for Habitat."""

import contextlib
import gzip
import json
import random
import socket
import subprocess
import sys
import threading

import pytest

pytest.importorskip("zmq", reason="pip install pyzmq")

from nvila_ros.evaluation import habitat_server

pytestmark = pytest.mark.slow
NUM_EPISODES = 3


class StandingWorld:
    """One picture, one place, and a goal at hand: whatever is done, it succeeds when it stops."""

    collided = False

    def reset(self, request):
        self.place = request["start_position"]

    def move(self, forward_m, turn_rad):
        pass

    def view(self):
        import numpy as np

        return self.place, [0.0, 0.0, 0.0, 1.0], 2.0, np.zeros((24, 32, 3), np.uint8)


def two_free_ports():
    """The first of two; plain sockets give a port back at once, ZeroMQ's in their own time."""
    for first in random.sample(range(20000, 30000, 2), 100):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", first))
            other.bind(("127.0.0.1", first + 1))
            return first
    raise AssertionError("no two free ports")


@pytest.fixture
def ports():
    """Two servers on consecutive ports."""
    first = two_free_ports()
    ended = threading.Event()
    threads = [
        threading.Thread(
            target=habitat_server.serve,
            args=(StandingWorld(), f"tcp://127.0.0.1:{first + number}", ended.is_set),
            daemon=True,
        )
        for number in range(2)
    ]
    for thread in threads:
        thread.start()
    yield first
    ended.set()
    for thread in threads:
        thread.join(5.0)


def test_two_workers_share_the_episodes_and_a_second_run_has_nothing_to_do(
    ports, tiny_folder, tmp_path
):
    rows = [
        {
            "episode_id": number,
            "scene_id": "mp3d/a/a.glb",
            "start_position": [0.0, 0.0, 0.0],
            "start_rotation": [0.0, 0.0, 0.0, 1.0],
            "info": {"geodesic_distance": 2.0},
            "goals": [{"position": [0.0, 0.0, -2.0]}],
            "reference_path": [[0.0, 0.0, 0.0], [0.0, 0.0, -2.0]],
            "instruction": {"instruction_text": "Go ahead."},
        }
        for number in range(NUM_EPISODES)
    ]
    (tmp_path / "val").mkdir()
    with gzip.open(tmp_path / "val" / "val.json.gz", "wt") as file:
        json.dump({"episodes": rows}, file)
    command = [sys.executable, "-m", "nvila_ros.cli", "evaluate", "r2r-ce", "--split", "val"]
    command += ["--data", str(tmp_path), "--output", str(tmp_path / "out")]
    command += ["--model", str(tiny_folder), "--workers", "2"]
    command += ["--endpoint", f"tcp://127.0.0.1:{ports}"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["num_episodes"], summary["num_missing"]) == (NUM_EPISODES, 0)
    assert summary["metrics"]["ne"] == {"mean": 2.0, "num": NUM_EPISODES, "num_not_finite": 0}
    assert summary["metrics"]["tl"]["mean"] == 0.0
