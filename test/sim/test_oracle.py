# SPDX-License-Identifier: Apache-2.0
"""The teacher: it arrives, it does not dither, and its costs rank the ten motions sensibly."""

import math

import numpy as np
import pytest

from nvila_ros.sim import motion
from nvila_ros.sim.episodes import generate_batch
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.oracle import Planner, stop_cost

STOP, FORWARD_25, FORWARD_50, FORWARD_75, LEFT_15, LEFT_30, LEFT_45, RIGHT_15, _, RIGHT_45 = range(
    10
)


def see_everything(scene):
    """A camera that has every landmark in view."""
    keys = [thing.key for thing in (*scene.doors, *scene.furniture)]
    return lambda poses: [dict.fromkeys(keys, 0.05)] * len(poses)


def drive(planner, starts, max_decisions=200):
    """Follow the best motions: (poses, stopped, decisions, left-right flips), each over robots."""
    poses, count = np.array(starts, dtype=float), len(starts)
    stopped, decisions, flips = np.zeros(count, bool), np.zeros(count, int), np.zeros(count, int)
    last_turn = np.zeros(count)
    for _ in range(max_decisions):
        actions = np.where(stopped, STOP, planner.best(poses))
        decisions += ~stopped
        stopped |= actions == STOP
        turn = np.sign(motion.TURN_RAD[actions])
        flips += turn * last_turn < 0
        last_turn = turn
        poses = motion.apply(planner.grid, poses, actions).poses
        if stopped.all():
            break
    return poses, stopped, decisions, flips


@pytest.fixture(scope="module")
def hall():
    """A map of 8 m by 6 m with a wall at x = 4 m that ends at y = 3 m."""
    occupied = np.zeros((160, 120), dtype=bool)
    occupied[79:81, :60] = True
    return OccupancyGrid.from_occupied(occupied)


def costs_at(grid, goal, x_m, y_m, yaw_deg):
    return Planner(grid, [goal]).action_costs(np.array([[x_m, y_m, math.radians(yaw_deg)]]))[0]


def test_goal_ahead_asks_for_the_longest_forward(hall):
    costs = costs_at(hall, (3.0, 5.0), 1.0, 5.0, 0)
    assert costs.argmin() == FORWARD_75
    assert costs[FORWARD_75] < costs[FORWARD_50] < costs[FORWARD_25] < costs[FORWARD_75] + 1
    assert costs[[LEFT_15, RIGHT_15]].min() > costs[FORWARD_75] + 1


def test_goal_on_the_left_asks_for_a_left_turn(hall):
    costs = costs_at(hall, (2.0, 5.0), 2.0, 2.0, 0)
    assert costs.argmin() == LEFT_45
    assert costs[LEFT_45] < costs[LEFT_30] < costs[LEFT_15] < costs[FORWARD_25]
    assert costs[RIGHT_45] > costs[LEFT_45] + 4


def test_goal_straight_behind_leaves_left_and_right_nearly_equal(hall):
    costs = costs_at(hall, (1.0, 5.0), 3.0, 5.0, 0)
    assert {int(index) for index in np.argsort(costs)[:2]} == {LEFT_45, RIGHT_45}
    assert abs(costs[LEFT_45] - costs[RIGHT_45]) < 0.3


def test_the_way_around_a_wall_is_seen_from_behind_it(hall):
    costs = costs_at(hall, (5.0, 1.0), 3.0, 1.0, 0)
    assert costs.argmin() == LEFT_45


def test_stop_is_best_near_the_goal_and_ever_worse_away_from_it(hall):
    assert costs_at(hall, (2.0, 3.0), 2.2, 3.0, 90).argmin() == STOP
    assert costs_at(hall, (2.0, 3.0), 2.0, 2.2, 90).argmin() != STOP
    away = stop_cost(np.array([0.1, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0]))
    assert (np.diff(away) > 0).all()
    assert away[4] > away[1] + 10


def test_stopping_far_away_is_the_worst_of_all(hall):
    costs = costs_at(hall, (5.0, 1.0), 1.0, 1.0, 180)
    assert costs[STOP] > costs[np.isfinite(costs)][1:].max() + 50


def test_motions_that_would_collide_cost_infinity(hall):
    costs = costs_at(hall, (5.0, 1.0), 3.3, 1.0, 0)
    assert np.isfinite(costs[FORWARD_25])
    assert np.isinf(costs[[FORWARD_50, FORWARD_75]]).all()


def test_driving_past_the_goal_is_worse_than_stopping_on_it(hall):
    costs = costs_at(hall, (2.0, 5.0), 1.4, 5.0, 0)
    assert costs.argmin() == FORWARD_50
    assert costs[FORWARD_75] > costs[FORWARD_50] + 0.9


def test_robots_are_judged_independently(hall):
    rng = np.random.default_rng(3)
    roomy = hall.centre(np.argwhere(hall.free))
    points = roomy[rng.integers(len(roomy), size=12)]
    poses = np.c_[points, rng.uniform(-3, 3, 12)]
    planner = Planner(hall, [(5.0, 1.0), (1.0, 5.0)])
    goal_index = np.arange(12) % 2
    together = planner.action_costs(poses, goal_index)
    for row in range(12):
        alone = planner.action_costs(poses[row : row + 1], goal_index[row : row + 1])
        assert np.allclose(alone, together[row])


def test_distance_is_geodesic_and_interpolated(hall):
    planner = Planner(hall, [(5.0, 1.0)])
    exact = 2 * math.hypot(1.0, 2.25)  # the wall ends at 3 m, the robot's centre passes at 3.25 m
    assert planner.distance_m([[3.0, 1.0]])[0] == pytest.approx(exact, rel=0.05)
    steps = planner.distance_m([[5.0 + 0.01 * k, 1.0] for k in range(30)], np.zeros(30, int))
    assert np.diff(steps).max() < 0.02


def test_poses_and_goals_in_the_inflated_zone_are_snapped(hall):
    planner = Planner(hall, [(3.9, 1.0)])
    poses = np.array([[3.87, 2.0, 0.0], [3.97, 0.5, 2.0], [0.1, 0.1, 0.0]])
    costs = planner.action_costs(poses, np.zeros(3, int))
    assert np.isfinite(planner.distance_m(poses, np.zeros(3, int))).all()
    assert np.isfinite(costs.min(axis=1)).all()
    shared = Planner(hall, [(3.0, 5.0)] * 3)
    _, stopped, _, _ = drive(shared, poses)
    assert stopped.all()


def test_trace_leads_to_the_goal_and_keeps_clear(hall):
    planner = Planner(hall, [(5.0, 1.0)])
    trail = planner.trace(np.array([[3.0, 1.0]]), 80)[0]
    assert trail[-1].tolist() == [5.0, 1.0]
    assert hall.clearance_at(trail[5:-10]).min() > 0.35


def test_arrives_without_dithering_from_any_pose():
    rng = np.random.default_rng(11)
    for seed in (21, 22):
        grid = OccupancyGrid.from_scene(generate_scene(seed))
        anywhere = grid.centre(np.argwhere(grid.free))
        roomy = grid.centre(np.argwhere(grid.free & (grid.clearance_m > 0.3)))
        planner = Planner(grid, roomy[rng.integers(len(roomy), size=20)])
        starts = anywhere[rng.integers(len(anywhere), size=20)]
        starts = np.c_[starts, rng.uniform(-np.pi, np.pi, 20)]
        poses, stopped, decisions, flips = drive(planner, starts)
        assert stopped.all() and (planner.distance_m(poses) < 0.55).all()
        assert decisions.mean() < 30 and flips.mean() < 0.2


def episode_results(seeds, per_seed):
    """(distance at the end, stopped, decisions, SPL) over generated episodes."""
    rows = []
    for seed in seeds:
        scene = generate_scene(seed)
        grid = OccupancyGrid.from_scene(scene)
        episodes = generate_batch(
            scene, grid, see_everything(scene), np.random.default_rng(seed), per_seed
        )
        planner = Planner(grid, [episode.goal for episode in episodes])
        starts = [episode.start for episode in episodes]
        poses, stopped, decisions, _ = drive(planner, starts)
        rows += list(zip(planner.distance_m(poses), stopped, decisions, strict=True))
    return np.array(rows, dtype=float)


def check_results(rows):
    success = (rows[:, 0] < 0.5) & (rows[:, 1] > 0)
    assert success.mean() >= 0.99
    assert rows[:, 2].mean() < 25


def test_oracle_solves_episodes():
    check_results(episode_results(range(500, 504), per_seed=10))


@pytest.mark.slow
def test_oracle_solves_99_percent_of_500_unseen_episodes():
    check_results(episode_results(range(910_000, 910_500), per_seed=1))
