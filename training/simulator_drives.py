# SPDX-License-Identifier: Apache-2.0
"""Samples about drives: what a robot turned to and passed, and when; and decisions to imitate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.sim import motion
from nvila_ros.sim.episodes import Episode, episode_from_seed
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.instructions import unique_furniture
from nvila_ros.sim.oracle import Planner
from nvila_ros.training.data.sample import Sample, Turn

UNIT_S = 0.5  # one frame per unit motion of 25 cm or 15 degrees
PASS_DISTANCE_M = 1.6  # from the robot to the middle of a thing that it passes
PASS_MARGIN_M = 0.4  # a passing lasts as long as the thing is this near its nearest
SEEN_SHARE = 0.01  # of the picture, once before it is passed
TURNED_RAD, STRAIGHT_RAD = np.radians(40), np.radians(10)
TURN_FRAMES = 10
LEAST_STRETCH_FRAMES = 16  # of a drive that is asked about
# poses so far (N, 3), their pictures (N, S, S, 3) -> action: who drives besides the oracle
Choose = Callable[[np.ndarray, np.ndarray], int]


@dataclass(frozen=True, eq=False)
class Drive:
    """One episode as it was driven."""

    episode: Episode
    poses: np.ndarray  # (N, 3) one per frame
    frames: np.ndarray  # (N, S, S, 3) uint8
    decided: list[tuple[int, int]]  # index of the current frame, the oracle's action
    shares: list[dict[str, float]]  # per frame: landmark key -> share of the picture


def drive(
    seed: int,
    side_px: int,
    rng: np.random.Generator,
    noise: float = 0.0,
    max_decisions: int = 60,
    choose: Choose | None = None,
    student_share: float = 0.0,
) -> Drive:
    """Drives the episode of a seed by the oracle; labels stay the oracle's whoever drives.

    A share `noise` of the decisions is random, a share `student_share` is `choose`'s; a stop that
    is wrong is not carried out.
    """
    from nvila_ros.sim.renderer import Renderer  # needs OpenGL
    from nvila_ros.sim.world import World

    episode = episode_from_seed(seed)
    grid = OccupancyGrid.from_scene(episode.scene)
    planner = Planner(grid, np.array([episode.goal]))
    poses = [np.asarray(episode.start, dtype=np.float64)]
    decided: list[tuple[int, int]] = []
    with Renderer(World(episode.scene), side_px, side_px, batch=16) as renderer:
        frames = [renderer.render(poses[0])]
        for _ in range(max_decisions):
            best = int(planner.best(poses[-1][None])[0])
            decided.append((len(poses) - 1, best))
            if best == motion.STOP:
                break
            action = best
            draw = rng.random()
            if draw < noise:
                action = int(rng.integers(1, len(ACTIONS)))
            elif choose is not None and draw < noise + student_share:
                action = choose(np.stack(poses), np.stack(frames)) or best
            moved = motion.apply(grid, poses[-1][None], np.array([action]))
            reached = moved.unit_poses[0, : moved.num_units[0]]
            poses.extend(reached)
            frames.extend(renderer.render_batch(reached))
        path = np.stack(poses)
        shares = renderer.visible(path)
    return Drive(episode, path, np.stack(frames), decided, shares)


def decision_samples(driven: Drive, source: str) -> list[Sample]:
    """Stages 6 and 7: each decision with everything seen up to it."""
    seed = driven.episode.seed
    frames = tuple(driven.frames)
    return [
        Sample(
            key=f"{seed}/{place}/{ACTIONS[index].kind}",
            source=source,
            kind="navigation",
            frames=frames[: place + 1],
            turns=(Turn(user=driven.episode.instruction, answer=ACTIONS[index].sentence),),
            group=str(seed),
        )
        for place, index in driven.decided
    ]


@dataclass(frozen=True)
class Pass:
    """A thing that was passed, and the frames while it was nearest."""

    name: str
    first: int
    last: int
    nearest: int
    seen: int  # the last frame before `nearest` that shows it


def passes(driven: Drive) -> list[Pass]:
    """Unique things that the robot came near and had seen before, in the order of passing."""
    found = []
    for piece in unique_furniture(driven.episode.scene):
        away_m = np.hypot(*(driven.poses[:, :2] - (piece.x_m, piece.y_m)).T)
        nearest = int(away_m.argmin())
        shares = [share.get(piece.key, 0.0) for share in driven.shares[:nearest]]
        seen = np.flatnonzero(np.asarray(shares) >= SEEN_SHARE)
        is_inside = 0 < nearest < len(away_m) - 1
        if not (piece.solid and len(seen) and is_inside and away_m[nearest] < PASS_DISTANCE_M):
            continue
        far = np.flatnonzero(away_m >= away_m[nearest] + PASS_MARGIN_M)
        first = int(max(far[far < nearest], default=-1)) + 1
        last = int(min(far[far > nearest], default=len(away_m))) - 1
        name = f"{piece.colour} {piece.category}"
        found.append(Pass(name, first, last, nearest, int(seen[-1])))
    return sorted(found, key=lambda passed: passed.nearest)


def video_samples(
    driven: Drive,
    rng: np.random.Generator,
    source: str,
    num_time_tokens: int = 0,
    spans_per_drive: int = 1,
) -> list[Sample]:
    """Stage 5: which way it turned, what it passed first and, with time tokens, when.

    The first of `spans_per_drive` times is asked of the whole drive, the others of stretches of it.
    """
    samples = []
    turn = _turn(driven, rng)
    if turn is not None:
        window, answer = turn
        samples.append(_video(driven, source, "turn", "Which way did you turn?", answer, window))
    passed = passes(driven)
    for one, other in itertools.pairwise(passed):
        if other.nearest - one.nearest >= 3:
            names = [one.name, other.name]
            if rng.random() < 0.5:
                names.reverse()
            question = f"What did you pass first: the {names[0]} or the {names[1]}?"
            samples.append(_video(driven, source, "first", question, f"The {one.name}."))
            break
    if num_time_tokens and passed:
        for number in range(spans_per_drive):
            thing = passed[rng.integers(len(passed))]
            window = _stretch(driven, thing, rng) if number else slice(0, len(driven.poses))
            task = f"{number}/when" if number else "when"
            samples.append(_when(driven, source, task, thing, num_time_tokens, window))
    return samples


def _turn(driven: Drive, rng: np.random.Generator) -> tuple[slice, str] | None:
    """A stretch in which the robot clearly turned one way, or not at all."""
    step_rad = motion.wrap(np.diff(driven.poses[:, 2]))
    width = min(TURN_FRAMES, len(driven.poses))
    found: dict[str, list[int]] = {"Left.": [], "Right.": [], "It went ahead.": []}
    for start in range(len(driven.poses) - width + 1):
        part = step_rad[start : start + width - 1]
        net, all_of_it = part.sum(), np.abs(part).sum()
        if all_of_it < STRAIGHT_RAD:
            found["It went ahead."].append(start)
        elif abs(net) > TURNED_RAD and abs(net) > 0.99 * all_of_it:
            found["Left." if net > 0 else "Right."].append(start)
    answers = [answer for answer, starts in found.items() if starts]
    if not answers:
        return None
    answer = answers[rng.integers(len(answers))]
    start = found[answer][rng.integers(len(found[answer]))]
    return slice(start, start + width), answer


def _stretch(driven: Drive, thing: Pass, rng: np.random.Generator) -> slice:
    """A part of the drive in which the thing is seen and then passed."""
    count = len(driven.poses)
    begin = int(rng.integers(min(thing.first, thing.seen) + 1))
    end = int(rng.integers(thing.last + 1, count)) + 1 if thing.last + 1 < count else count
    short = LEAST_STRETCH_FRAMES - (end - begin)
    if short > 0:
        begin = max(0, begin - short)
        end = min(count, begin + LEAST_STRETCH_FRAMES)
    return slice(begin, end)


def _when(
    driven: Drive, source: str, task: str, thing: Pass, num_time_tokens: int, window: slice
) -> Sample:
    last_frame, last_token = window.stop - window.start - 1, num_time_tokens - 1
    first, last = thing.first - window.start, thing.last - window.start
    begin, end = (round(f / last_frame * last_token) for f in (first, last))
    span_s = (first * UNIT_S, last * UNIT_S)
    question = f"When did you pass the {thing.name}?"
    answer = f"From <t{begin}> to <t{end}>."
    return _video(driven, source, task, question, answer, window, (span_s,))


def _video(
    driven: Drive,
    source: str,
    task: str,
    question: str,
    answer: str,
    window: slice = slice(None),
    spans_s: tuple[tuple[float, float], ...] = (),
) -> Sample:
    frames = tuple(driven.frames[window])
    return Sample(
        key=f"{driven.episode.seed}/{task}",
        source=source,
        kind="video",
        frames=frames,
        turns=(Turn(user=f"<vila/video>\n{question}", answer=answer),),
        duration_s=(len(frames) - 1) * UNIT_S,
        time_spans_s=spans_s,
    )
