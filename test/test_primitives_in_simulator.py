# SPDX-License-Identifier: Apache-2.0
"""Five hundred primitives in the simulated apartment: how exactly they end, how long they take."""

import math

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.primitives import MotionConfig, Primitive, PrimitiveState
from nvila_ros.safety import free_ahead_m

pytest.importorskip("mujoco")

from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.world import World

TICK_S = 0.05
NUM_PRIMITIVES = 500
RADIUS_M = 0.20
NUM_RAYS = 72


def drive(world, action, config):
    """Drives one action; (last step, error at rest, seconds, ideal seconds)."""
    primitive = Primitive(action.forward_m, action.turn_rad, config)
    start, now_s = world.pose, 0.0
    while True:
        ahead_m = free_ahead_m(world.scan(NUM_RAYS), 0.0, math.tau / NUM_RAYS, RADIUS_M)
        step = primitive.update(*world.pose, now_s, ahead_m)
        if step.state is not PrimitiveState.RUNNING:
            break
        world.step(step.velocity.forward_m_s, step.velocity.turn_rad_s, TICK_S)
        now_s += TICK_S
    for _ in range(10):
        world.step(0.0, 0.0, TICK_S)
    end = world.pose
    turned_rad = math.remainder(end[2] - start[2], math.tau)
    along_m = (end[0] - start[0]) * math.cos(start[2]) + (end[1] - start[1]) * math.sin(start[2])
    error = turned_rad - action.turn_rad if action.turn_rad else along_m - action.forward_m
    return step, abs(error), now_s, primitive.ideal_s


def test_five_hundred_primitives_end_within_their_tolerances():
    config, generator = MotionConfig(), np.random.default_rng(6)
    episodes = [episode_from_seed(900_000 + number) for number in range(4)]
    errors = {"forward": [], "turn": []}
    slow, failed = [], 0
    for episode in episodes:
        world = World(episode.scene)
        world.set_pose(np.array(episode.start))
        for _ in range(NUM_PRIMITIVES // len(episodes)):
            ahead_m = free_ahead_m(world.scan(NUM_RAYS), 0.0, math.tau / NUM_RAYS, RADIUS_M)
            turns = [action for action in ACTIONS if action.turn_rad]
            forward = [a for a in ACTIONS if 0.0 < a.forward_m < ahead_m - 0.3]
            actions = forward if forward and generator.random() < 0.8 else turns
            step, error, took_s, ideal_s = drive(world, generator.choice(actions), config)
            if step.state is PrimitiveState.FAILED:
                failed += 1
                continue
            errors["turn" if abs(step.turn_rad) > abs(step.forward_m) else "forward"].append(error)
            slow.append(took_s / ideal_s)
    counts = {kind: len(values) for kind, values in errors.items()}
    worst = {kind: max(values) for kind, values in errors.items()}
    worst_deg, median_deg = math.degrees(worst["turn"]), math.degrees(np.median(errors["turn"]))
    print(
        f"\n{counts} driven, {failed} stopped; worst error {100 * worst['forward']:.2f} cm, "
        f"{worst_deg:.2f} degrees; median {100 * np.median(errors['forward']):.2f} cm, "
        f"{median_deg:.2f} degrees; time against the ideal {np.median(slow):.2f} to {max(slow):.2f}"
    )
    assert sum(counts.values()) + failed == NUM_PRIMITIVES and failed < 0.02 * NUM_PRIMITIVES
    assert min(counts.values()) > 100
    assert worst["forward"] <= config.distance_tolerance_m
    assert worst["turn"] <= config.angle_tolerance_rad
    assert max(slow) < config.deadline_factor
