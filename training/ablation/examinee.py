# SPDX-License-Identifier: Apache-2.0
"""The robots of an exam: one per arm, side by side in the apartment of one seed."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory

import numpy as np

from nvila_ros.config import SUCCESS_RADIUS_M

CAMERA_PX = 224  # what `nvila simulate` draws, resized as the preprocessor does
MOST_UNITS = 3  # frames per decision


@dataclass
class Asked:
    """Robots of one apartment that need a decision; arrays over them."""

    seed: int
    instruction: str
    arms: np.ndarray  # (n,) int64 positions in the wave
    num_frames: np.ndarray  # (n,) int64 taken so far
    allowed: np.ndarray  # (n, 10) bool


@dataclass
class Result:
    """What came of one arm's episode."""

    arm: int
    line: dict


class Examinee:
    """K robots at the start of one seed's episode, one per arm."""

    def __init__(self, seed: int, num_arms: int, frames: np.ndarray, most: int) -> None:
        """`frames` (K, F, S, S, 3) uint8 is filled as robots move; `most` decisions each."""
        from nvila_ros.restraint import Restraint
        from nvila_ros.sim import motion
        from nvila_ros.sim.episodes import episode_from_seed
        from nvila_ros.sim.grid import OccupancyGrid
        from nvila_ros.sim.oracle import Planner
        from nvila_ros.sim.renderer import Renderer
        from nvila_ros.sim.world import World

        self.motion, self.seed, self.frames, self.most = motion, seed, frames, most
        self.episode = episode_from_seed(seed)
        scene = self.episode.scene
        self.grid = OccupancyGrid.from_scene(scene)
        self.planner = Planner(self.grid, np.array([self.episode.goal]))
        batch = MOST_UNITS * num_arms
        self.renderer = Renderer(World(scene), CAMERA_PX, CAMERA_PX, batch=batch)
        self.poses = np.repeat(np.array(self.episode.start, float)[None], num_arms, 0)
        self.restraints = [Restraint() for _ in range(num_arms)]
        self.num_frames = np.zeros(num_arms, np.int64)
        self.num_decisions = np.zeros(num_arms, np.int64)
        self.length_m, self.regret = np.zeros(num_arms), np.zeros(num_arms)
        self.active = np.ones(num_arms, bool)
        self.stopped = np.zeros(num_arms, bool)
        self.least_m = np.full(num_arms, np.inf)
        self._draw(np.arange(num_arms), self.poses)

    def _draw(self, robots: np.ndarray, poses: np.ndarray) -> None:
        from PIL import Image

        size = self.frames.shape[2]
        for robot, picture in zip(robots, self.renderer.render_batch(poses), strict=True):
            image = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)
            self.frames[robot, self.num_frames[robot]] = np.asarray(image)
            self.num_frames[robot] += 1

    def ask(self) -> Asked:
        """What the active robots need to decide."""
        robots = np.flatnonzero(self.active)
        offered = [self.restraints[r].allowed(*self.poses[r].tolist()) for r in robots]
        allowed = np.array([[action in found for action in range(10)] for found in offered])
        return Asked(self.seed, self.episode.instruction, robots, self.num_frames[robots], allowed)

    def advance(self, asked: Asked, actions: np.ndarray) -> None:
        """Carries out one action per asking robot."""
        robots, motion = asked.arms, self.motion
        goal = np.zeros(len(robots), int)
        costs = np.minimum(self.planner.action_costs(self.poses[robots], goal), 1e3)
        regret = costs[np.arange(len(robots)), actions] - costs.min(1)
        self.regret[robots] += np.minimum(regret, 10.0)
        for robot, action in zip(robots, actions, strict=True):
            self.restraints[robot].tried(int(action), *self.poses[robot].tolist())
        self.num_decisions[robots] += 1
        stops = actions == motion.STOP
        self.stopped[robots[stops]] = True
        self.active[robots[stops]] = False
        going = robots[~stops]
        if len(going):
            moved = motion.apply(self.grid, self.poses[going], actions[~stops])
            for row, robot in enumerate(going):
                poses = moved.unit_poses[row, : moved.num_units[row]]
                path = np.concatenate([self.poses[robot][None], poses])[:, :2]
                self.length_m[robot] += np.hypot(*np.diff(path, axis=0).T).sum()
                self._draw(np.full(len(poses), robot), poses)
                if len(poses):
                    self.poses[robot] = poses[-1]
        late = self.num_decisions[robots] >= self.most
        self.active[robots[late]] = False
        self.least_m[robots] = np.minimum(self.least_m[robots], self._distances_m()[robots])

    def _distances_m(self) -> np.ndarray:
        return self.planner.distance_m(self.poses, np.zeros(len(self.poses), int))

    def results(self) -> list[Result]:
        """One per arm."""
        distance_m, shortest_m = self._distances_m(), self.episode.geodesic_m
        found = []
        for arm in range(len(self.poses)):
            success = bool(self.stopped[arm] and distance_m[arm] < SUCCESS_RADIUS_M)
            line = {
                "seed": self.seed,
                "success": success,
                "spl": success * shortest_m / max(shortest_m, self.length_m[arm]),
                "stopped": bool(self.stopped[arm]),
                "distance_m": round(float(distance_m[arm]), 3),
                "least_m": round(float(self.least_m[arm]), 3),
                "decisions": int(self.num_decisions[arm]),
                "regret": round(float(self.regret[arm] / max(1, self.num_decisions[arm])), 4),
            }
            found.append(Result(arm, line))
        return found

    def close(self) -> None:
        """Frees the renderer."""
        self.renderer.close()


def work(connection: Connection, memory_name: str, shape: tuple[int, ...], most: int) -> None:
    """One process: takes (seed, number of arms), drives, sends results."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
    memory = SharedMemory(name=memory_name)
    frames = np.ndarray(shape, np.uint8, memory.buf)
    try:
        while True:
            seed, num_arms = connection.recv()
            exam = Examinee(seed, num_arms, frames[:num_arms], most)
            while exam.active.any():
                asked = exam.ask()
                connection.send(asked)
                exam.advance(asked, connection.recv())
            exam.close()
            connection.send(exam.results())
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    except Exception:
        connection.send(traceback.format_exc())
    finally:
        memory.close()
