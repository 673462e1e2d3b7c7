# SPDX-License-Identifier: Apache-2.0
"""Episodes: sound, told in known words, the same from the same seed, and kept in files."""

import json
import re

import numpy as np
import pytest

from nvila_ros.errors import SceneError
from nvila_ros.sim.drafts import drafts_from
from nvila_ros.sim.episodes import (
    Episode,
    EpisodeMaker,
    episode_from_seed,
    generate_batch,
    generate_episode,
    load_episodes,
    save_episodes,
)
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import MAX_CLAUSES, VOCABULARY_WORDS
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.oracle import Planner

SEED = 31


def make_batch(count=12, seen=True):
    scene = generate_scene(SEED)
    keys = [thing.key for thing in (*scene.doors, *scene.furniture)] if seen else []
    grid = OccupancyGrid.from_scene(scene)
    rng = np.random.default_rng(SEED)
    return grid, generate_batch(
        scene, grid, lambda poses: [dict.fromkeys(keys, 0.05)] * len(poses), rng, count
    )


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def test_batch_holds_as_many_as_asked(batch):
    assert len(batch[1]) == 12


def test_starts_and_goals_are_free_and_a_walk_apart(batch):
    grid, episodes = batch
    for episode in episodes:
        assert grid.clearance_at([episode.start, (*episode.goal, 0)]).min() >= 0.3
        assert 3 <= episode.geodesic_m <= 12
        distance_m = Planner(grid, [episode.goal]).distance_m([episode.start])[0]
        assert episode.geodesic_m == pytest.approx(distance_m, abs=0.01)


def test_path_leads_from_start_to_goal_through_free_floor(batch):
    grid, episodes = batch
    for episode in episodes:
        path = np.array(episode.path)
        assert np.linalg.norm(path[0] - episode.start[:2]) < 0.1
        assert np.linalg.norm(path[-1] - episode.goal) < 0.1
        assert grid.clearance_at(path).min() > 0.22
        assert np.hypot(*np.diff(path, axis=0).T).sum() > 0.97 * episode.geodesic_m


def test_the_goal_is_before_the_side_that_is_nearest_from_the_start():
    """A piece that stands free used to get any of its sides, which no instruction tells."""
    num_compared = 0
    for seed in range(SEED, SEED + 4):
        scene = generate_scene(seed)
        keys = [thing.key for thing in (*scene.doors, *scene.furniture)]
        grid = OccupancyGrid.from_scene(scene)
        episodes = generate_batch(
            scene,
            grid,
            lambda poses, keys=keys: [dict.fromkeys(keys, 0.05)] * len(poses),
            np.random.default_rng(seed),
            16,
        )
        for episode in episodes:
            piece = scene.furniture[episode.goal_furniture_id]
            goals = {e.goal for e in episodes if e.goal_furniture_id == piece.id}
            for other in goals - {episode.goal}:
                num_compared += 1
                distance_m = Planner(grid, [other]).distance_m([episode.start])[0]
                assert episode.geodesic_m <= distance_m + 1e-3
    assert num_compared > 0


def test_goal_lies_before_its_piece(batch):
    for episode in batch[1]:
        piece = episode.scene.furniture[episode.goal_furniture_id]
        away_m = np.linalg.norm(np.subtract(episode.goal, (piece.x_m, piece.y_m)))
        reach_m = away_m - 0.7
        assert min(abs(reach_m - piece.depth_m / 2), abs(reach_m - piece.width_m / 2)) < 1e-3
        assert episode.clauses[-1].landmark == piece.key


def test_instruction_holds_the_clauses_in_known_words(batch):
    for episode in batch[1]:
        text = episode.instruction.lower()
        assert 1 <= len(episode.clauses) <= MAX_CLAUSES
        positions = [text.find(clause.text) for clause in episode.clauses]
        assert -1 not in positions
        assert set(re.findall(r"[a-z]+", text)) <= VOCABULARY_WORDS
        arcs_m = [clause.arc_m for clause in episode.clauses]
        assert arcs_m == sorted(arcs_m)


def test_nothing_is_told_where_nothing_is_seen():
    assert make_batch(count=3, seen=False)[1] == []
    scene = generate_scene(SEED)
    grid = OccupancyGrid.from_scene(scene)
    rng = np.random.default_rng(0)
    assert generate_episode(scene, grid, rng, lambda poses: [{}] * len(poses)) is None


def test_same_seed_same_episodes(batch):
    assert make_batch()[1] == batch[1]


def test_files_keep_everything(batch, tmp_path):
    save_episodes(tmp_path / "episodes.json", batch[1])
    assert load_episodes(tmp_path / "episodes.json") == batch[1]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 99}', "not json"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SceneError, match=r"other\.json"):
        load_episodes(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(SceneError, match="cannot read"):
        load_episodes(tmp_path / "none.json")


@pytest.mark.parametrize("damage", [{"start": [1, 2]}, {"goal": [float("nan"), 0]}, {"clauses": 3}])
def test_malformed_episode_is_refused(batch, damage):
    data = json.loads(json.dumps(batch[1][0].to_json()))
    with pytest.raises(SceneError, match="malformed"):
        Episode.from_json({**data, **damage})


def test_episode_of_a_seed_is_seen_through_the_camera():
    episode = episode_from_seed(7)
    assert episode.seed == 7 and episode.scene.seed == 7
    assert episode == episode_from_seed(7)


def test_a_start_and_a_goal_that_are_given_make_the_episode_that_was_drawn():
    """Its way and what must be said of it; words and things to pass are drawn again."""
    scene = generate_scene(SEED)
    keys = [thing.key for thing in (*scene.doors, *scene.furniture)]

    def visible(poses):
        return [dict.fromkeys(keys, 0.05)] * len(poses)

    maker = EpisodeMaker(scene, OccupancyGrid.from_scene(scene), visible, np.random.default_rng(3))
    episodes = maker.batch(8)
    ids = [goal.furniture.id for goal in maker.goals]
    chosen = np.array([ids.index(episode.goal_furniture_id) for episode in episodes])
    starts = np.array([episode.start for episode in episodes])
    found = drafts_from(scene, maker.planner, maker.goals, starts, chosen)
    assert [row for row, _ in found] == list(range(8))
    told = maker.tell([draft for _, draft in found], visible, np.random.default_rng(4))
    for again, episode in zip(told, episodes, strict=True):
        assert (again.start, again.goal) == (episode.start, episode.goal)
        assert np.allclose(again.path, episode.path, atol=1e-4)
        for kind in ("door", "turn", "goal"):
            said, before = (
                [(c.landmark, c.arc_m) for c in e.clauses if c.kind == kind]
                for e in (again, episode)
            )
            assert said == before


def test_no_route_is_given_to_a_goal_that_is_too_near():
    scene = generate_scene(SEED)
    maker = EpisodeMaker(
        scene,
        OccupancyGrid.from_scene(scene),
        lambda poses: [{}] * len(poses),
        np.random.default_rng(3),
    )
    here = np.array([[*maker.goals[0].places[0], 0.0]])
    assert not drafts_from(scene, maker.planner, maker.goals, here, np.array([0]))
