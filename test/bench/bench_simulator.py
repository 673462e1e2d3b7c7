# SPDX-License-Identifier: Apache-2.0
"""How fast the simulator builds apartments and draws what the camera sees, per CPU second."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np

from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.world import World

FIRST_SEED = 910_000
SIDE_PX = 224
BATCH = 3  # frames of one decision's motion


def measure_scene(seed: int, num_frames: int) -> dict[str, float]:
    """Builds one apartment and draws frames at random places and headings in it."""
    begin_s = time.perf_counter()
    scene = generate_scene(seed)
    renderer = Renderer(World(scene), SIDE_PX, SIDE_PX, batch=BATCH)
    build_s = time.perf_counter() - begin_s
    rng = np.random.default_rng(seed)
    rooms = [scene.rooms[index] for index in rng.integers(0, len(scene.rooms), num_frames)]
    poses = np.array([[*room.centre, rng.uniform(-np.pi, np.pi)] for room in rooms])
    with renderer:
        renderer.render_batch(poses[:BATCH])
        begin_wall_s, begin_cpu_s = time.perf_counter(), time.process_time()
        renderer.render_batch(poses)
        wall_s, cpu_s = time.perf_counter() - begin_wall_s, time.process_time() - begin_cpu_s
    return {"build_s": build_s, "frames_wall_s": wall_s, "frames_cpu_s": cpu_s}


def run(num_scenes: int = 10, num_frames: int = 90) -> dict[str, Any]:
    """Medians over scenes; the first one warms up and does not count."""
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa draws in the calling thread
    rows = [measure_scene(FIRST_SEED + number, num_frames) for number in range(num_scenes + 1)][1:]
    begin_s = time.perf_counter()
    for number in range(3):
        episode_from_seed(FIRST_SEED + number)
    episode_s = (time.perf_counter() - begin_s) / 3
    builds_s = [row["build_s"] for row in rows]
    return {
        "num_scenes": num_scenes,
        "frame_side_px": SIDE_PX,
        "frames_per_cpu_second": num_scenes * num_frames / sum(r["frames_cpu_s"] for r in rows),
        "frames_per_wall_second": num_scenes * num_frames / sum(r["frames_wall_s"] for r in rows),
        "scene_build_p50_s": float(np.median(builds_s)),
        "scene_build_max_s": max(builds_s),
        "episode_from_seed_s": episode_s,
        "goal_frames_per_cpu_second": 80.0,
        "goal_scene_build_s": 0.5,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--frames", type=int, default=90)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.scenes, arguments.frames), indent=2))
