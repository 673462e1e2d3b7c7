# SPDX-License-Identifier: Apache-2.0
"""Robots following instructions in one apartment, in lockstep: frames and exact labels.

All robots of a fleet share one scene, one renderer and one planner, so a scene is built once for
hundreds of frames. A fleet drives several rounds; episodes that the student failed are met again
in the next one. A robot is driven by the oracle (with random actions injected), by the student
(its wrong stops overridden), or sits an exam (the student alone, its stop honoured). Students and
exams drive under the same restraint as the policy does.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from nvila_ros.config import SUCCESS_RADIUS_M
from nvila_ros.restraint import Restraint
from nvila_ros.sim import motion
from nvila_ros.sim.appearance import Appearance
from nvila_ros.sim.episodes import Episode, EpisodeMaker
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.layout import generate_scene
from nvila_ros.sim.motion import STOP
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.scene import Scene
from nvila_ros.sim.sight import Sight
from nvila_ros.sim.world import World
from nvila_ros.training.fleet_labels import DecisionLabels, View
from nvila_ros.training.fleet_settings import EXAM, ORACLE, STUDENT, FleetSettings
from nvila_ros.training.path_progress import PathProgress
from nvila_ros.training.questions import ask_about_view
from nvila_ros.training.replay import history_indices
from nvila_ros.training.searching import SEARCH_TURN_RAD, SearchingTeacher, search_costs
from nvila_ros.training.sequences import SequenceBuilder
from nvila_ros.training.twins import Twins
from nvila_ros.training.view_labels import LandmarkTable

GLANCE_PX = 128  # of the views from which a twin's instruction is told, as `episode_from_seed` does


class Fleet:
    """K robots, K episodes, one apartment; call `labels`, then `advance`, until none is active."""

    def __init__(
        self, seed: int, settings: FleetSettings, frames: np.ndarray, sequences: SequenceBuilder
    ) -> None:
        """`frames` (K, max_frames, S, S, 3) uint8 is filled in place as robots move."""
        self.seed, self.settings, self.sequences = seed, settings, sequences
        self.frames = frames
        self.rng = np.random.default_rng([seed, 7])
        self.scene: Scene = generate_scene(seed)
        self.world = World(self.scene, Appearance.random(self.rng))
        size = settings.camera_size_px
        most = motion.MAX_UNITS * settings.num_robots
        self.renderer = Renderer(self.world, size, size, batch=most)
        self.grid = OccupancyGrid.from_scene(self.scene)
        self.landmarks = LandmarkTable(self.scene, self.renderer.world.landmarks)
        self.teacher = SearchingTeacher(self.scene, Sight(self.world))
        wanted = settings.num_robots * (settings.num_rounds + 1) // 2 + settings.num_robots // 2
        maker = EpisodeMaker(self.scene, self.grid, self.renderer.visible, self.rng)
        found = maker.batch(wanted)
        self.waiting = [e for e in found if sequences.fits(e.instruction)]
        goals = [np.array([episode.goal for episode in found]).reshape(-1, 2)]
        if settings.num_twins and maker.planner is not None:
            goals.append(maker.planner.goals)
        self.planner = Planner(self.grid, np.concatenate(goals)) if found else None
        self.glances = (
            Renderer(self.world, GLANCE_PX, GLANCE_PX, 64) if settings.num_twins else None
        )
        visible = (self.glances or self.renderer).visible
        self.twins = Twins(maker, visible, sequences.fits, np.random.default_rng([seed, 11]))
        self._goal_of = {id(episode): index for index, episode in enumerate(found)}
        self.failed: list[Episode] = []
        self.episodes: list[Episode] = []
        self.num_rounds = 0  # begun
        self.active = np.zeros(0, bool)
        self.begin_round(settings)

    def begin_round(self, settings: FleetSettings) -> bool:
        """Places robots at starts, failed episodes first; False where no round or episode is left.

        They get at most half of the places. `settings` may change the drivers' shares.
        """
        self.settings = settings
        again, self.failed = self.failed[: settings.num_robots // 2], []
        fresh = settings.num_robots - len(again)
        self.episodes, self.waiting = again + self.waiting[:fresh], self.waiting[fresh:]
        if self.num_rounds >= settings.num_rounds or not self.episodes:
            self.episodes = []
            return False
        self.num_rounds += 1
        self._start(len(again))
        return True

    def _start(self, num_again: int) -> None:
        count = len(self.episodes)
        self.poses = np.array([episode.start for episode in self.episodes]).reshape(count, 3)
        self.active = np.ones(count, bool)
        self.num_frames = np.ones(count, np.int64)
        self.num_sent = np.zeros(count, np.int64)
        self.num_decisions = np.zeros(count, np.int64)
        self.success = np.zeros(count, bool)
        self.stopped_wrongly = np.zeros(count, bool)
        draw = self.rng.random(count)
        exam, student = self.settings.exam_share, self.settings.student_share
        self.driver = np.where(draw < exam, EXAM, np.where(draw < exam + student, STUDENT, ORACLE))
        # What was failed before is practised, and does not count as an exam.
        self.driver[:num_again] = STUDENT
        likeliest = self.rng.random(count) < self.settings.greedy_share
        self.greedy = (self.driver == EXAM) | likeliest
        self.noise = self.rng.choice(self.settings.noise_levels, count)
        self.restraints = [Restraint() for _ in range(count)]
        self._start_rows()
        if count:
            self._store(np.arange(count), np.zeros(count, np.int64), self.poses)

    def _start_rows(self) -> None:
        """What is labelled, row by row: K robots, then their twins; exams have none."""
        practising = np.flatnonzero(self.driver != EXAM)
        self.twins.start(self.episodes, practising, self.settings.num_twins)
        self.told = self.episodes + self.twins.episodes
        self.robot_of = np.concatenate([np.arange(len(self.episodes)), self.twins.robot_of])
        self.paths = [PathProgress(episode) for episode in self.told]
        self.arc_m = np.zeros(len(self.told))
        own = np.array([self._goal_of[id(e)] for e in self.episodes], np.int64)
        self.goal_index = np.concatenate([own, self.twins.goal_index(self.planner)])
        self.teacher.start(self.told, self.settings.max_frames, self.robot_of)

    def close(self) -> None:
        """Frees the renderer's context."""
        if self.glances is not None:
            self.glances.close()
        self.renderer.close()

    def labels(self) -> DecisionLabels:
        """The oracle's word on every active robot's pose, and labelled views of some of them."""
        assert self.planner is not None
        robots = np.flatnonzero(self.active)
        rows, count = self.twins.append_to(robots), len(robots)
        poses, goals = self.poses[self.robot_of[rows]], self.goal_index[rows]
        costs = np.minimum(self.planner.action_costs(poses, goals), 1e3).astype(np.float32)
        aim = self._aim_bearing(poses, goals)
        distance = np.minimum(self.planner.distance_m(poses, goals), 50.0)
        for row, pose in zip(rows, poses, strict=True):
            self.arc_m[row] = self.paths[row].advance(pose, self.arc_m[row])
        num_shown = self.sequences.config.num_video_frames
        num_frames = self.num_frames[self.robot_of[rows]]
        shown = np.array([history_indices(n, num_shown) for n in num_frames])
        clause = np.array([self.paths[r].clause(self.arc_m[r]) for r in rows], np.int64)
        views = self._views(robots, costs[:count])
        if self.settings.searches:
            sides = self.teacher.sides(rows, clause, shown, costs.argmin(1))
            looks = sides != 0
            costs[looks] = search_costs(sides[looks])
            aim = np.where(looks, sides * SEARCH_TURN_RAD, aim)
        way = np.stack([np.sin(aim), np.cos(aim), np.log1p(distance)], 1)
        sightings = self.teacher.sightings(rows, clause, num_frames - 1)
        targets = np.concatenate([way, sightings], 1).astype(np.float32)
        first_frame = self.num_sent[robots].copy()
        self.num_sent[robots] = self.num_frames[robots]
        return DecisionLabels(
            robots=robots,
            first_frame=first_frame,
            last_frame=self.num_frames[robots] - 1,
            costs=costs[:count],
            targets=targets[:count],
            distance_m=distance[:count],
            clause=clause[:count],
            shown=shown[:count],
            allowed=self._allowed(robots),
            views=views,
            twins=self.twins.labels(
                rows, poses, self.arc_m[rows], costs, targets, clause, distance
            ),
        )

    def _allowed(self, robots: np.ndarray) -> np.ndarray:
        """(n, 10) bool: what the restraint offers; the oracle is not restrained."""
        allowed = np.ones((len(robots), len(motion.MOTIONS)), bool)
        for row, robot in enumerate(robots):
            if self.driver[robot] != ORACLE:
                offered = self.restraints[robot].allowed(*self.poses[robot].tolist())
                allowed[row] = [action in offered for action in range(len(motion.MOTIONS))]
        return allowed

    def _aim_bearing(self, poses: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """(n,) bearing of the point about 1.2 m down each robot's path, from its heading."""
        assert self.planner is not None
        aim = self.planner.trace(poses, 8, goals)[:, -1] - poses[:, :2]
        return motion.wrap(np.arctan2(aim[:, 1], aim[:, 0]) - poses[:, 2])

    def _views(self, robots: np.ndarray, costs: np.ndarray) -> list[View]:
        chosen = np.flatnonzero(self.rng.random(len(robots)) < self.settings.view_share)
        if not len(chosen):
            return []
        poses = self.poses[robots[chosen]]
        pictures = self.renderer.segment_batch(poses)
        views = []
        for row, pose, picture in zip(chosen, poses, pictures, strict=True):
            robot = int(robots[row])
            category, colour = self.landmarks.patches(picture, self.settings.patches_per_side)
            seen = self.landmarks.seen(picture, pose, self.settings.min_share)
            free_units = int((costs[row, 1:4] < 999.0).sum())
            turns = ask_about_view(
                self.rng,
                seen,
                self.landmarks.absent(picture),
                self._room_kind(pose),
                free_units,
            )
            talk = self.sequences.conversation(turns)
            views.append(View(robot, int(self.num_frames[robot]) - 1, category, colour, *talk))
        return views

    def _room_kind(self, pose: np.ndarray) -> str:
        inside = [room for room in self.scene.rooms if room.contains(pose[0], pose[1])]
        return inside[0].kind if inside else "apartment"

    def advance(self, labels: DecisionLabels, student_actions: np.ndarray | None) -> None:
        """Moves every active robot by its driver's action and draws the frames on the way.

        `labels` are the last ones; `student_actions` (n,) int64 in their order, or None when no
        robot asks the student.
        """
        robots, distance_m = labels.robots, labels.distance_m
        best, driver = labels.costs.argmin(1), self.driver[robots]
        actions = best.copy()
        is_random = self.rng.random(len(robots)) < self.noise[robots]
        random_action = self.rng.integers(1, 10, len(robots))
        actions = np.where((driver == ORACLE) & is_random & (best != STOP), random_action, actions)
        if student_actions is not None:
            wrong_stop = (student_actions == STOP) & (distance_m > SUCCESS_RADIUS_M / 2)
            self.stopped_wrongly[robots] |= wrong_stop & (driver != ORACLE)
            obeyed = np.where(wrong_stop, best, student_actions)
            actions = np.where(driver == STUDENT, obeyed, actions)
            actions = np.where(driver == EXAM, student_actions, actions)
        for robot, action in zip(robots, actions, strict=True):
            self.restraints[robot].tried(int(action), *self.poses[robot].tolist())
        self.num_decisions[robots] += 1
        stopped = actions == STOP
        self.success[robots[stopped]] = distance_m[stopped] < SUCCESS_RADIUS_M
        self.active[robots[stopped]] = False
        self._move(robots[~stopped], actions[~stopped])
        self._give_up(robots, distance_m)

    def _move(self, robots: np.ndarray, actions: np.ndarray) -> None:
        if not len(robots):
            return
        before = self.poses[robots]
        moved = motion.apply(self.grid, before, actions)
        drawn: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for unit in range(motion.MAX_UNITS):
            poses = moved.unit_poses[:, unit]
            went = np.abs(poses - before).max(1) > 1e-6  # a blocked unit shows nothing new
            before = poses
            going = (unit < moved.num_units) & went
            going &= self.num_frames[robots] < self.settings.max_frames
            self.poses[robots[going]] = poses[going]
            drawn.append((robots[going], self.num_frames[robots[going]], poses[going]))
            self.num_frames[robots[going]] += 1
        self._store(*(np.concatenate(part) for part in zip(*drawn, strict=True)))

    def _give_up(self, robots: np.ndarray, distance_m: np.ndarray) -> None:
        start = np.array([self.episodes[r].geodesic_m for r in robots])
        lost = distance_m > start + self.settings.lost_margin_m
        full = self.num_frames[robots] >= self.settings.max_frames
        late = self.num_decisions[robots] >= self.settings.max_decisions
        self.active[robots[lost | full | late]] = False
        over = robots[~self.active[robots]]
        failed = over[~self.success[over] | self.stopped_wrongly[over]]
        self.failed += [self.episodes[r] for r in failed if self.driver[r] != ORACLE]

    def _store(self, robots: np.ndarray, slots: np.ndarray, poses: np.ndarray) -> None:
        size = self.settings.image_size_px
        if not len(robots):
            return
        self.teacher.saw(robots, slots, poses)
        pictures = self.renderer.render_batch(poses)
        for robot, slot, picture in zip(robots, slots, pictures, strict=True):
            image = Image.fromarray(picture)
            if picture.shape[0] != size:
                image = image.resize((size, size), Image.Resampling.BICUBIC)
            self.frames[robot, slot] = np.asarray(image)
