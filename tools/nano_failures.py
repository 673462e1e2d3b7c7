# SPDX-License-Identifier: Apache-2.0
"""Why episodes failed: each drive of a run judged from its scene, and pictures of some of them.

    nvila simulate --seeds 900000:900200 --json > RUN.json
    python tools/nano_failures.py RUN.json --pictures FOLDER

The run's recorded motions are driven once more, which needs no model: the simulator's motions are
exact. What was best at a pose is the planner's word, which knows the way and never searches.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nvila_ros.evaluation.floor_plan import draw_floor_plan
from nvila_ros.sim import motion
from nvila_ros.sim.episodes import Episode, episode_from_seed
from nvila_ros.sim.grid import OccupancyGrid
from nvila_ros.sim.oracle import Planner
from nvila_ros.sim.renderer import Renderer
from nvila_ros.sim.scene import Furniture
from nvila_ros.sim.world import World
from nvila_ros.training.path_progress import PathProgress

SUCCESS_M = 1.0
IN_VIEW = 0.003  # share of the picture from which on a piece counts as seen
AHEAD_M, AHEAD_RAD = 1.6, np.radians(55)  # the piece that a stop is before lies within these
ON_THE_WAY_M = 0.8  # from the planned path
COSTLY = 2.0  # units of 25 cm or 15 degrees
LONG = 56  # decisions; exams in training end there
BANDS_M = (3.0, 4.5, 6.0, 8.0, 12.1)
TURNS = [f"{side} {degrees}" for side in ("left", "right") for degrees in (15, 30, 45)]
NAMES = ["stop", "fwd 25", "fwd 50", "fwd 75", *TURNS]
TURN_DEGREES = [0, 0, 0, 0, 15, 30, 45, -15, -30, -45]
TILE_PX, PICTURE_PX = (880, 336), 154
NUM_PICTURES, TILES_PER_SHEET = 6, 10


@dataclass(eq=False)
class Drive:
    """One episode as it was driven; arrays over its n decisions."""

    episode: Episode
    goal: Furniture
    succeeded: bool
    stopped: bool
    poses: np.ndarray  # (n, 3) x_m, y_m, yaw_rad where each was taken
    actions: np.ndarray  # (n,) int
    best: np.ndarray  # (n,) int, the planner's motion
    regret: np.ndarray  # (n,) what the motion costs more than the best one
    distance_m: np.ndarray  # (n,) geodesic, to the goal
    clause: list[str]  # (n) kind of the clause under way
    end_m: float  # distance to the goal where the drive ends
    end: np.ndarray  # (3,) pose where it ends
    off_path_m: float  # there
    share: np.ndarray = field(
        default_factory=lambda: np.zeros(0)
    )  # (n,) of the picture, the goal's

    @property
    def in_goal_room(self) -> np.ndarray:
        """(n,) bool, whether the robot was in the goal's room."""
        rooms = [self.episode.scene.room_at(*map(float, pose[:2])) for pose in self.poses]
        return np.array([room is not None and room.id == self.goal.room_id for room in rooms])


def replay(row: dict[str, Any]) -> Drive:
    """Drives an episode's recorded motions again; `row` is one of `nvila simulate --json`."""
    episode = episode_from_seed(row["seed"])
    grid = OccupancyGrid.from_scene(episode.scene)
    planner, one = Planner(grid, np.array([episode.goal])), np.zeros(1, int)
    progress, arc_m, pose = PathProgress(episode), 0.0, np.asarray(episode.start, float)
    poses, costs, clause = [], [], []
    for action in row["actions"]:
        arc_m = progress.advance(pose, arc_m)
        poses.append(pose)
        costs.append(np.minimum(planner.action_costs(pose[None], one)[0], 1e3))
        clause.append(episode.clauses[progress.clause(arc_m)].kind)
        moved = motion.apply(grid, pose[None], np.array([action]))
        if action != motion.STOP and moved.num_units[0]:
            pose = moved.unit_poses[0, moved.num_units[0] - 1]
    cost, actions = np.array(costs), np.array(row["actions"])
    along = np.stack([*poses, pose])
    distance_m = planner.distance_m(along, np.zeros(len(along), int))
    return Drive(
        episode=episode,
        goal=next(p for p in episode.scene.furniture if p.id == episode.goal_furniture_id),
        succeeded=row["success"],
        stopped=row["stopped"],
        poses=along[:-1],
        actions=actions,
        best=cost.argmin(1),
        regret=cost[np.arange(len(cost)), actions] - cost.min(1),
        distance_m=distance_m[:-1],
        clause=clause,
        end_m=float(distance_m[-1]),
        end=pose,
        off_path_m=float(np.hypot(*(progress.points - pose[:2]).T).min()),
    )


def piece_ahead(pieces: Iterable[Furniture], pose: np.ndarray) -> Furniture | None:
    """The piece that a robot at `pose` (3,) stands before, the nearest and straightest ahead."""
    found: list[tuple[float, Furniture]] = []
    for piece in pieces:
        offset = np.array([piece.x_m, piece.y_m]) - pose[:2]
        corners_m = np.hypot(*(np.array(piece.corners()) - pose[:2]).T)
        middle_m = np.hypot(*offset) - min(piece.width_m, piece.depth_m) / 2
        near_m = float(min(corners_m.min(), middle_m))
        bearing_rad = abs(float(motion.wrap(np.arctan2(offset[1], offset[0]) - pose[2])))
        if near_m < AHEAD_M and bearing_rad < AHEAD_RAD:
            found.append((near_m + 0.6 * bearing_rad, piece))
    return min(found, key=lambda item: item[0])[1] if found else None


def kind(drive: Drive) -> str:
    """How a drive ended, in words; "arrived" for a success."""
    if drive.succeeded:
        return "arrived"
    if not drive.stopped:
        return "never stopped"
    if drive.distance_m.min() < SUCCESS_M:
        return "passed the goal"
    ahead = piece_ahead(drive.episode.scene.furniture, drive.end)
    if ahead is not None and ahead.key == drive.goal.key:
        return "right piece, but too far"
    if drive.in_goal_room[-1]:
        if ahead is None:
            return "stopped in the right room before nothing"
        if ahead.category == drive.goal.category:
            return "same piece in another colour"
        return "stopped before another piece in the right room"
    on_the_way = drive.off_path_m < ON_THE_WAY_M
    return "stopped on the way" if on_the_way else "stopped in a wrong room"


def full_turns(actions: np.ndarray) -> int:
    """How often (n,) motions go all round to one side, or but 45 degrees of it, on the spot."""
    degrees = [TURN_DEGREES[action] for action in actions]
    sides = groupby(degrees, key=lambda turn: int(np.sign(turn)))
    return sum(abs(sum(turns)) >= 315 for side, turns in sides if side)


def look(drive: Drive, side_px: int = 96, batch: int = 16) -> np.ndarray:
    """(n,) the goal's share of the picture at every decision."""
    shares: list[float] = []
    with Renderer(World(drive.episode.scene), side_px, side_px, batch=batch) as renderer:
        for first in range(0, len(drive.poses), batch):
            seen = renderer.visible(drive.poses[first : first + batch])
            shares += [float(pieces.get(drive.goal.key, 0.0)) for pieces in seen]
    return np.array(shares)


def summary(drives: list[Drive]) -> str:
    """What the card tells of a run's drives; `share` must be known."""
    failed = [drive for drive in drives if not drive.succeeded]
    lines = [f"{len(drives)} episodes, {len(failed)} failures"]
    groups = _grouped(failed, kind)
    for name, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        median_m = np.median([drive.end_m for drive in group])
        seeds = " ".join(str(drive.episode.seed) for drive in group)
        lines.append(f"{len(group):4d} {name}: {median_m:.1f} m at the end (median); {seeds}")
    stops = [drive for drive in drives if drive.stopped]
    for name, group in sorted(_grouped(stops, lambda d: bool(d.share[-1] > IN_VIEW)).items()):
        lines.append(f"stops with the goal in view {name}: {_share(group)} arrive")
    entered = [drive for drive in drives if drive.in_goal_room.any()]
    for name, group in sorted(_grouped(entered, _seen_on_entering).items()):
        lines.append(f"goal in view on entering its room {name}: {_share(group)}")
    lines.append(f"never in the goal's room: {_share([d for d in drives if d not in entered])}")
    missed = [drive for drive in entered if not drive.succeeded]
    seen = sum(bool((drive.share[drive.in_goal_room] > IN_VIEW).any()) for drive in missed)
    lines.append(f"failures that saw the goal in its room: {seen} of {len(missed)}")
    long = [drive for drive in drives if len(drive.actions) > LONG]
    lines.append(f"longer than {LONG} decisions: {_share(long)}")
    rounds = _grouped(drives, lambda d: min(2, full_turns(d.actions)))
    parts = [f"{number}{'+' * (number == 2)}: {_share(part)}" for number, part in rounds.items()]
    lines.append("by full turns on the spot: " + ", ".join(sorted(parts)))
    keys: dict[str, Callable[[Drive], Any]] = {
        "clauses": lambda d: len(d.episode.clauses),
        "doors": lambda d: sum(clause.kind == "door" for clause in d.episode.clauses),
        "metres": lambda d: BANDS_M[np.searchsorted(BANDS_M, d.episode.geodesic_m, "right") - 1],
        "goal": lambda d: d.goal.category,
    }
    for title, key in keys.items():
        items = sorted(_grouped(drives, key).items())
        lines.append(f"by {title}: " + ", ".join(f"{name}: {_share(part)}" for name, part in items))
    for name in ("turn", "door", "pass", "goal"):
        same = [
            d.actions[i] == d.best[i]
            for d in drives
            for i, clause in enumerate(d.clause)
            if clause == name
        ]
        agreed = sum(same) / max(1, len(same))
        lines.append(f"the planner's motion while at a {name}: {agreed:.1%} of {len(same)}")
    return "\n".join(lines)


def _grouped(drives: list[Drive], key: Callable[[Drive], Any]) -> dict[Any, list[Drive]]:
    groups: dict[Any, list[Drive]] = defaultdict(list)
    for drive in drives:
        groups[key(drive)].append(drive)
    return groups


def _share(drives: list[Drive]) -> str:
    return f"{sum(drive.succeeded for drive in drives)} of {len(drives)}"


def _seen_on_entering(drive: Drive) -> bool:
    entry = int(drive.in_goal_room.argmax())
    return bool((drive.share[entry : entry + 2] > IN_VIEW).any())


def telling_decisions(drive: Drive) -> list[int]:
    """Up to six decisions that tell the drive: first, first costly one, costliest, the end."""
    count = len(drive.actions)
    costly = np.flatnonzero(drive.regret > COSTLY)
    worst = int(np.where(drive.actions != motion.STOP, np.minimum(drive.regret, 40), 0).argmax())
    wanted = [count - 1, 0, *costly[:1].tolist(), worst, max(0, count - 3), count // 2]
    wanted += [count // 4, 3 * count // 4, *range(count)]
    return sorted(list(dict.fromkeys(wanted))[:NUM_PICTURES])


def tile(drive: Drive) -> Image.Image:
    """Floor plan and pictures of one drive."""
    name = f"{drive.episode.seed}: {kind(drive)}"
    footer = f"{name}, {drive.end_m:.1f} m away, {len(drive.actions)} decisions"
    plan = draw_floor_plan(drive.episode, np.vstack([drive.poses, drive.end]), None, footer)
    left_px = TILE_PX[0] - 3 * (PICTURE_PX + 2) - 4
    plan.thumbnail((left_px - 8, TILE_PX[1] - 2), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", TILE_PX, (255, 255, 255))
    picture.paste(plan, (1, 1))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=11)
    chosen = telling_decisions(drive)
    with Renderer(World(drive.episode.scene), 192, 192, batch=NUM_PICTURES) as renderer:
        views = renderer.render_batch(drive.poses[chosen])
    for place, (index, view) in enumerate(zip(chosen, views, strict=True)):
        x = left_px + place % 3 * (PICTURE_PX + 2)
        y = place // 3 * (PICTURE_PX + 14)
        picture.paste(Image.fromarray(view).resize((PICTURE_PX, PICTURE_PX)), (x, y + 13))
        done, best = NAMES[drive.actions[index]], NAMES[drive.best[index]]
        ink = (200, 0, 0) if drive.regret[index] > COSTLY else (0, 0, 0)
        words = f"{index}: {done} ({best}) {drive.distance_m[index]:.1f} m"
        draw.text((x, y), words, fill=ink, font=font)
    draw.rectangle((0, 0, TILE_PX[0] - 1, TILE_PX[1] - 1), outline=(180, 180, 180))
    return picture


def save_sheets(drives: list[Drive], folder: Path) -> list[Path]:
    """Sheets of ten tiles, nano_failures_1.jpg and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for first in range(0, len(drives), TILES_PER_SHEET):
        part = drives[first : first + TILES_PER_SHEET]
        size = (2 * TILE_PX[0], TILE_PX[1] * ((len(part) + 1) // 2))
        sheet = Image.new("RGB", size, (255, 255, 255))
        for place, drive in enumerate(part):
            sheet.paste(tile(drive), (place % 2 * TILE_PX[0], place // 2 * TILE_PX[1]))
        paths.append(folder / f"nano_failures_{first // TILES_PER_SHEET + 1}.jpg")
        sheet.save(paths[-1], quality=60)
    return paths


def main() -> None:
    """Reads a run, prints the summary, draws failures at random."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="output of nvila simulate --json")
    parser.add_argument("--pictures", type=Path, help="folder for sheets of failures")
    parser.add_argument("--draw", type=int, default=20, help="how many failures, at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    arguments = parser.parse_args()
    drives = [replay(row) for row in json.loads(arguments.run.read_text())["episodes"]]
    for drive in drives:
        drive.share = look(drive)
    print(summary(drives))
    failed = [drive for drive in drives if not drive.succeeded]
    if arguments.pictures is not None and failed:
        order = np.random.default_rng(arguments.seed).permutation(len(failed))[: arguments.draw]
        for path in save_sheets([failed[index] for index in sorted(order)], arguments.pictures):
            print(path)


if __name__ == "__main__":
    main()
