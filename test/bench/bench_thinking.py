# SPDX-License-Identifier: Apache-2.0
"""Does thinking while moving cost success? The navigator in the apartment, in virtual time, no ROS.

The model's latency is a number here: the answer is held back until it has passed, so the result
does not depend on how busy this machine is.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.decision_worker import Answer
from nvila_ros.evaluation.drive_record import GoalDistance
from nvila_ros.models import weights
from nvila_ros.navigator import Navigator
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import Phase
from nvila_ros.nodes.simulated_robot import SimulatedRobot, SimulatorConfig
from nvila_ros.policy import NavigationPolicy
from nvila_ros.safety import free_ahead_m
from nvila_ros.sim.episodes import Episode, episode_from_seed
from nvila_ros.think_ahead import ThinkingConfig

TICK_S, TICKS_PER_IMAGE = 0.05, 2


class VirtualWorker:
    """A DecisionWorker whose thinking takes a given time of the virtual clock."""

    def __init__(self, policy: NavigationPolicy, latency_s: float) -> None:
        self.policy, self._latency_s, self.now_s = policy, latency_s, 0.0
        self.load_error, self.busy = "", False
        self._answer: Answer | None = None

    def ask(self, ticket: int) -> None:
        decision = replace(self.policy.decide(), latency_s=self._latency_s)
        self._answer, self._ready_s = Answer(ticket, decision, ""), self.now_s + self._latency_s

    def take_answer(self, ticket: int) -> Answer | None:
        if self._answer is None or self._answer.ticket != ticket or self.now_s < self._ready_s:
            return None
        answer, self._answer = self._answer, None
        return answer

    def ask_to_prepare(self) -> None:
        self.policy.prepare()

    def drop(self) -> None:
        self._answer = None

    def lost(self) -> str:
        return ""


def drive(policy: NavigationPolicy, episode: Episode, ahead: bool, latency_s: float) -> Any:
    """One episode: success, waiting share, seconds, decisions."""
    config = NavigatorConfig(thinking=ThinkingConfig(ahead=ahead), max_decisions=80)
    robot, worker = SimulatedRobot(episode, SimulatorConfig()), VirtualWorker(policy, latency_s)
    navigator = Navigator(config, worker)  # type: ignore[arg-type]
    navigator.activate()
    now_s = 0.0
    for tick in range(20_000):
        now_s += TICK_S
        worker.now_s = now_s
        pose = tuple(float(value) for value in robot.world.pose)
        navigator.hear_odometry(pose, now_s)  # type: ignore[arg-type]
        if tick % TICKS_PER_IMAGE == 0:
            rays = robot.scan()
            step_rad = math.tau / len(rays)
            navigator.hear_scan(free_ahead_m(rays, 0.0, step_rad, 0.2), now_s)
            rgb = robot.picture().copy() if navigator.wants_images() else None
            navigator.hear_image(rgb, now_s, now_s)
        if tick == 4:
            navigator.instruct(episode.instruction, now_s)
        velocity = navigator.tick(now_s, now_s)
        robot.command(velocity, now_s)
        robot.step(now_s)
        if tick > 4 and navigator.status.phase is Phase.IDLE:
            break
    error_m = float(GoalDistance(episode)(robot.world.pose[None])[0])
    robot.close()
    status = navigator.status
    return {
        "success": status.result.name == "SUCCEEDED" and error_m < 1.0,
        "result": status.result.name,
        "waiting_share": status.waiting_share,
        "seconds": navigator.times.duration_s,
        "decisions": status.num_decisions,
    }


def run(num_episodes: int, latencies_s: list[float]) -> list[dict[str, Any]]:
    """The same episodes with and without thinking ahead, for several latencies."""
    policy = NavigationPolicy.load(Path(weights.__file__).parent / "nano")
    episodes = [episode_from_seed(900_100 + number) for number in range(num_episodes)]
    table = []
    for latency_s in latencies_s:
        for ahead in (False, True):
            rows = [drive(policy, episode, ahead, latency_s) for episode in episodes]
            table.append(
                {
                    "latency_s": latency_s,
                    "thinks_ahead": ahead,
                    "episodes": len(rows),
                    "successes": sum(row["success"] for row in rows),
                    "waiting_share": float(np.mean([row["waiting_share"] for row in rows])),
                    "seconds": float(np.mean([row["seconds"] for row in rows])),
                    "decisions": float(np.mean([row["decisions"] for row in rows])),
                    "results": sorted({row["result"] for row in rows}),
                }
            )
            print(json.dumps(table[-1]), flush=True)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--latencies-s", type=float, nargs="+", default=[0.06, 0.2])
    given = parser.parse_args()
    run(given.episodes, given.latencies_s)
