# SPDX-License-Identifier: Apache-2.0
"""Navigation prompts with pictures, recorded in the simulator: what quantizers calibrate on."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvila_ros.actions import ACTIONS
from nvila_ros.config import HistoryConfig
from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.history import Frame, FrameHistory

EVALUATION_SEEDS = range(900_000, 900_200)  # success is reported on these: nothing learns from them
MAX_EPISODES = 4096
PROMPTS_FILE = "prompts.json"
FILE_FORMAT = 1
CAMERA_SIDE_PX = 224  # as the evaluation's camera
NOISE_SHARE = 0.15  # random motions of the driver: not every prompt stands on the best way
MAX_DECISIONS = 60


@dataclass(frozen=True)
class RecordedPrompt:
    """One decision: what the model was told, what it saw and what would have been right."""

    instruction: str
    frames: tuple[str | None, ...]  # files beside `prompts.json`, oldest first; None is black
    answer: str  # a sentence of the vocabulary


def parse_calibration(text: str) -> Path | tuple[int, ...]:
    """'700000:700032' or '32' -> seeds to drive; anything else -> a folder or file that exists."""
    first, separator, last = text.partition(":")
    if not first.isdigit() or (separator and not last.isdigit()):
        path = Path(text)
        if not path.exists():
            raise ConfigError(
                f"calibration {text!r} does not exist; give seeds such as 700000:700032, a number "
                f"of episodes, a file of episodes or a folder with {PROMPTS_FILE}"
            )
        return path
    begin, end = (int(first), int(last)) if separator else (700_000, 700_000 + int(first))
    if not begin < end or end - begin > MAX_EPISODES:
        raise ConfigError(f"calibration is {text!r}; expected 1 to {MAX_EPISODES} episodes A:B")
    if begin < EVALUATION_SEEDS.stop and end > EVALUATION_SEEDS.start:
        raise ConfigError(
            f"calibration {text!r} overlaps the evaluation's seeds "
            f"{EVALUATION_SEEDS.start}:{EVALUATION_SEEDS.stop}; take others, such as 700000:700032"
        )
    return tuple(range(begin, end))


def load_prompts(folder: Path) -> list[RecordedPrompt]:
    """The prompts of a folder; ConfigError for anything else."""
    path = folder / PROMPTS_FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        prompts = [
            RecordedPrompt(str(item["instruction"]), tuple(item["frames"]), str(item["answer"]))
            for item in data["prompts"]
        ]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; record prompts first") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of prompts ({error!r}); record it again") from None
    names = {name for prompt in prompts for name in prompt.frames if name is not None}
    absent = sorted(name for name in names if not (folder / name).is_file())
    if not prompts or absent:
        raise ConfigError(
            f"{folder} lacks {f'the picture {absent[0]}' if absent else 'prompts'}; record it again"
        )
    return prompts


def record(
    folder: Path,
    calibration: Path | tuple[int, ...],
    prompts_per_episode: int,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
) -> list[RecordedPrompt]:
    """Drive the episodes and keep some decisions of each; a finished episode is not driven again.

    A folder of prompts is taken as it is, in place.
    """
    if isinstance(calibration, Path) and calibration.is_dir():
        return load_prompts(calibration)
    folder.mkdir(parents=True, exist_ok=True)
    prompts: list[RecordedPrompt] = []
    sources = list(_sources(calibration))
    for number, (name, episode_of) in enumerate(sources):
        path = folder / f"{name}.json"
        if not path.exists():
            _write_prompts(path, _record_episode(folder, name, episode_of, prompts_per_episode))
        prompts += _read_prompts(path)
        on_episode(number + 1, len(sources))
    if not prompts:
        raise ConfigError("no episode could be driven; take other calibration seeds")
    _write_prompts(folder / PROMPTS_FILE, prompts)
    return prompts


def _sources(calibration: Path | tuple[int, ...]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """A name and a maker of each episode; making one draws, which costs."""
    from nvila_ros.sim.episodes import episode_from_seed, load_episodes

    if not isinstance(calibration, Path):
        for seed in calibration:
            yield f"seed_{seed}", functools.partial(episode_from_seed, seed)
        return
    episodes = load_episodes(calibration)
    if not episodes:
        raise ConfigError(f"{calibration} holds no episodes; save some with save_episodes")
    if any(episode.seed in EVALUATION_SEEDS for episode in episodes):
        raise ConfigError(f"{calibration} holds episodes of the evaluation; take others")
    for number, episode in enumerate(episodes):
        yield f"episode_{number}", functools.partial(copy.copy, episode)


def _record_episode(
    folder: Path, name: str, episode_of: Callable[[], Any], count: int
) -> list[RecordedPrompt]:
    """`count` decisions spread over one episode; an apartment without a route gives none."""
    try:
        episode = episode_of()
    except NvilaError:
        return []
    decisions = list(_drive(episode))
    chosen = sorted({int(place) for place in np.linspace(0, len(decisions) - 1, count + 2)[1:-1]})
    written: dict[int, str] = {}
    prompts = []
    for place in chosen:
        frames, answer = decisions[place]
        names = tuple(
            None if frame is None else _write_frame(folder, name, frame, written)
            for frame in frames
        )
        prompts.append(RecordedPrompt(episode.instruction, names, answer))
    return prompts


def _drive(episode: Any) -> Iterator[tuple[list[Frame | None], str]]:
    """The frames shown and the right answer at every decision of a slightly clumsy oracle."""
    from nvila_ros.sim import motion
    from nvila_ros.sim.grid import OccupancyGrid
    from nvila_ros.sim.oracle import Planner
    from nvila_ros.sim.renderer import Renderer
    from nvila_ros.sim.world import World

    random = np.random.default_rng([episode.seed, 11])
    grid = OccupancyGrid.from_scene(episode.scene)
    planner = Planner(grid, np.array([episode.goal]))
    history = FrameHistory(HistoryConfig())
    pose = np.asarray(episode.start, dtype=np.float64)
    new_poses = pose[None]
    side_px = CAMERA_SIDE_PX
    with Renderer(World(episode.scene), side_px, side_px, batch=motion.MAX_UNITS) as renderer:
        for number in range(MAX_DECISIONS):
            for rgb, at in zip(renderer.render_batch(new_poses), new_poses, strict=True):
                x_m, y_m, yaw_rad = (float(value) for value in at)
                history.append(rgb.copy(), x_m, y_m, yaw_rad, float(number))
            best = int(planner.best(pose[None])[0])
            yield history.select(), ACTIONS[best].sentence
            if best == motion.STOP:
                return
            is_random = random.random() < NOISE_SHARE
            taken = int(random.integers(1, len(ACTIONS))) if is_random else best
            moved = motion.apply(grid, pose[None], np.array([taken]))
            new_poses = moved.unit_poses[0, : moved.num_units[0]]
            pose = new_poses[-1]


def _write_frame(folder: Path, name: str, frame: Frame, written: dict[int, str]) -> str:
    """A PNG per frame of an episode, however many prompts show it."""
    if id(frame) not in written:
        written[id(frame)] = f"{name}_{len(written):03d}.png"
        Image.fromarray(frame.rgb).save(folder / written[id(frame)])
    return written[id(frame)]


def _write_prompts(path: Path, prompts: Sequence[RecordedPrompt]) -> None:
    data = {"format": FILE_FORMAT, "prompts": [vars(prompt) for prompt in prompts]}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _read_prompts(path: Path) -> list[RecordedPrompt]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return [RecordedPrompt(**{**item, "frames": tuple(item["frames"])}) for item in data["prompts"]]
