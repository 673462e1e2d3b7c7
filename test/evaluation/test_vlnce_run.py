# SPDX-License-Identifier: Apache-2.0
"""VLN-CE's loop through the real server and client over ZeroMQ.

Habitat cannot be installed here: a world with the methods of HabitatWorld, in Habitat's axes over
an empty plane, stands behind the socket.
"""

import itertools
import json
import math
import threading

import numpy as np
import pytest

pytest.importorskip("zmq", reason="pip install pyzmq")

from nvila_ros.actions import ACTIONS, STOP
from nvila_ros.decision import Decision
from nvila_ros.evaluation import habitat_server
from nvila_ros.evaluation.habitat_client import HabitatClient, HabitatError
from nvila_ros.evaluation.vlnce_episodes import VlnCeEpisode, habitat_from_yaw
from nvila_ros.evaluation.vlnce_run import (
    discrete_steps,
    drive_episode,
    evaluate_shard,
    write_summary,
)

FORWARD_75, LEFT_45 = ACTIONS[3], ACTIONS[6]
_PORTS = itertools.count(1)


class PlaneWorld:
    """Habitat's axes, no walls but one: x below -5 cannot be reached."""

    def __init__(self):
        self.collided, self.num_resets = False, 0

    def reset(self, request):
        self.num_resets += 1
        self.position = np.array(request["start_position"], float)
        self.goal = np.array(request["goal_position"], float)
        _, y, _, w = request["start_rotation"]
        self.heading = 2 * math.atan2(y, w)

    def move(self, forward_m, turn_rad):
        self.heading += turn_rad
        wanted = self.position + forward_m * np.array(
            [-math.sin(self.heading), 0, -math.cos(self.heading)]
        )
        self.collided = wanted[0] < -5
        if not self.collided:
            self.position = wanted

    def view(self):
        shade = int(50 * abs(self.position).sum()) % 256
        distance = float(np.linalg.norm(self.position - self.goal))
        rotation = habitat_from_yaw(self.heading)
        return self.position.tolist(), rotation, distance, np.full((8, 10, 3), shade, np.uint8)


@pytest.fixture
def server():
    endpoint = f"inproc://habitat-{next(_PORTS)}"
    world, ended = PlaneWorld(), threading.Event()
    thread = threading.Thread(
        target=habitat_server.serve, args=(world, endpoint, ended.is_set), daemon=True
    )
    thread.start()
    client = HabitatClient(endpoint, timeout_s=5.0)
    yield world, client
    client.close()
    ended.set()
    thread.join(5.0)


def episode(name="1", goal=(3.0, 3.0, 0.0)):
    return VlnCeEpisode(
        episode_id=name,
        scene_id="mp3d/a/a.glb",
        instruction="Walk past the sofa.",
        language="en",
        start_m=np.zeros(3),
        start_yaw_rad=0.0,
        goal_m=np.array(goal),
        geodesic_m=float(np.linalg.norm(goal)),
        reference_m=np.linspace((0.0, 0.0, 0.0), (3.0, 3.0, 0.0), 10),
    )


class ScriptedPolicy:
    def __init__(self, *actions):
        self._actions, self.poses = actions, []

    def reset(self, instruction):
        self._left = list(self._actions)

    def observe(self, rgb, x_m, y_m, yaw_rad, stamp_s):
        assert rgb.shape == (8, 10, 3)
        self.poses.append((x_m, y_m, yaw_rad))

    def decide(self):
        return Decision(
            action=self._left.pop(0) if self._left else STOP,
            confidence=1.0,
            probabilities=(0.1,) * 10,
            latency_s=0.0,
            num_encoded_frames=1,
            frame_indices=(0,),
            stamp_s=0.0,
        )

    def tried(self, decision):
        pass


def test_actions_are_steps_of_25_cm_and_15_degrees():
    assert [len(discrete_steps(action)) for action in ACTIONS] == [0, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    assert discrete_steps(LEFT_45) == ["turn_left"] * 3


def test_poses_come_back_in_ros_axes(server):
    _, client = server
    policy = ScriptedPolicy(FORWARD_75, LEFT_45, FORWARD_75)
    metrics, details = drive_episode(policy, client, episode(goal=(1.0, 0.5, 0.0)))
    x_m, y_m, yaw_rad = policy.poses[-1]
    assert (x_m, y_m) == pytest.approx((0.75 + 0.75 / math.sqrt(2), 0.75 / math.sqrt(2)))
    assert yaw_rad == pytest.approx(math.pi / 4)
    assert len(policy.poses) == 10  # one frame per step, and the first
    assert metrics.steps == 10 and metrics.sr == 1.0 and details["stopped"]
    assert metrics.tl == pytest.approx(1.5) and details["num_collisions"] == 0


def test_velocities_drive_it_too(server):
    _, client = server
    client.reset(episode())
    view = client.drive(0.5, 0.0, 0.1)
    np.testing.assert_allclose(view.position_m, [0.05, 0.0, 0.0], atol=1e-9)


def test_an_episode_without_stop_ends_after_so_many_steps(server):
    _, client = server
    policy = ScriptedPolicy(*[FORWARD_75] * 500)
    metrics, details = drive_episode(policy, client, episode(), max_steps=20)
    assert metrics.steps == 20 and metrics.sr == 0.0 and not details["stopped"]


def test_errors_of_the_server_are_told_and_it_lives_on(server):
    _, client = server
    with pytest.raises(HabitatError, match="fly"):
        client._ask(command="fly")
    assert client.reset(episode()).goal_distance_m == pytest.approx(math.sqrt(18))


def test_a_server_that_is_not_there_is_named():
    client = HabitatClient("tcp://127.0.0.1:9", timeout_s=0.2)
    with pytest.raises(HabitatError, match=r"habitat_server\.py"):
        client.reset(episode())
    client.close()


def test_it_goes_on_where_it_was_interrupted_and_shards_share_the_work(server, tmp_path):
    world, client = server
    episodes = [episode(str(number)) for number in range(5)]
    policy = ScriptedPolicy(FORWARD_75)
    assert evaluate_shard(policy, client, episodes, tmp_path, 0, 2) == 3
    assert write_summary(episodes, tmp_path)["num_missing"] == 2
    assert evaluate_shard(policy, client, episodes, tmp_path, 0, 2) == 0
    (tmp_path / "episodes" / "1.part").write_text("{")  # of a process that died
    assert evaluate_shard(policy, client, episodes, tmp_path, 1, 2) == 2
    assert world.num_resets == 5
    summary = write_summary(episodes, tmp_path)
    assert summary["num_missing"] == 0 and summary["metrics"]["tl"]["mean"] == pytest.approx(0.75)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_a_goal_that_cannot_be_reached_is_reported_and_not_dropped(server, tmp_path):
    _, client = server
    episodes = [episode("1"), episode("2", goal=(math.inf, 0.0, 0.0))]
    evaluate_shard(ScriptedPolicy(FORWARD_75), client, episodes, tmp_path)
    summary = write_summary(episodes, tmp_path)
    assert summary["episodes_not_finite"] == ["2"]
    assert summary["metrics"]["ne"]["num_not_finite"] == 1
    assert math.isfinite(summary["metrics"]["ne"]["mean"])
