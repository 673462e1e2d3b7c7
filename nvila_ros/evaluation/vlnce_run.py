# SPDX-License-Identifier: Apache-2.0
"""Evaluation on VLN-CE in discrete steps, as the papers do it; resumable and in shards.

One file per episode lies in `<output>/episodes`; an episode that has one is not driven again. The
summary is made of all files that are there, and says how many are not.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nvila_ros.actions import Action
from nvila_ros.decision import Policy
from nvila_ros.evaluation.habitat_client import View
from nvila_ros.evaluation.vlnce_episodes import VlnCeEpisode
from nvila_ros.evaluation.vlnce_metrics import MAX_STEPS, VlnCeMetrics, summarise, vlnce_metrics

STEP_M, STEP_RAD = 0.25, math.radians(15.0)


class World(Protocol):
    """What an episode is driven in: HabitatClient, or a stand-in."""

    def reset(self, episode: VlnCeEpisode) -> View: ...

    def step(self, action: str) -> View: ...


def discrete_steps(action: Action) -> list[str]:
    """75 cm is three steps forward, 30 degrees are two turns; STOP is none."""
    if action.turn_rad:
        name = "turn_left" if action.turn_rad > 0 else "turn_right"
        return [name] * round(abs(action.turn_rad) / STEP_RAD)
    return ["move_forward"] * round(action.forward_m / STEP_M)


def drive_episode(
    policy: Policy, world: World, episode: VlnCeEpisode, max_steps: int = MAX_STEPS
) -> tuple[VlnCeMetrics, dict[str, Any]]:
    """Metrics, and what else is worth keeping: collisions, decisions, the driven path."""
    policy.reset(episode.instruction)
    views = [world.reset(episode)]
    sentences: list[str] = []
    stopped, num_steps = False, 0
    _observe(policy, views[-1], 0)
    while not stopped and num_steps < max_steps:
        decision = policy.decide()
        policy.tried(decision)
        sentences.append(decision.sentence)
        steps = discrete_steps(decision.action)
        stopped = not steps
        num_steps += stopped
        for name in steps[: max_steps - num_steps]:
            views.append(world.step(name))
            num_steps += 1
            _observe(policy, views[-1], num_steps)  # one frame per step, as in training
    path_m = np.stack([view.position_m for view in views])
    distances_m = [view.goal_distance_m for view in views]
    metrics = vlnce_metrics(
        path_m, distances_m, episode.reference_m, stopped=stopped, num_steps=num_steps
    )
    return metrics, {
        "stopped": stopped,
        "num_decisions": len(sentences),
        "num_collisions": sum(view.collided for view in views),
        "sentences": sentences,
        "path_m": np.round(path_m, 3).tolist(),
    }


def _observe(policy: Policy, view: View, step: int) -> None:
    x_m, y_m = float(view.position_m[0]), float(view.position_m[1])
    policy.observe(view.rgb, x_m, y_m, view.yaw_rad, float(step))


def evaluate_shard(
    policy: Policy,
    world: World,
    episodes: Sequence[VlnCeEpisode],
    output: Path,
    shard: int = 0,
    num_shards: int = 1,
    on_episode: Callable[[str, VlnCeMetrics], None] | None = None,
) -> int:
    """Drives every `num_shards`-th episode that has no file yet; returns how many were driven."""
    folder = output / "episodes"
    folder.mkdir(parents=True, exist_ok=True)
    num_driven = 0
    for episode in episodes[shard::num_shards]:
        path = folder / f"{episode.episode_id}.json"
        if path.is_file():
            continue
        metrics, details = drive_episode(policy, world, episode)
        row = {
            "episode_id": episode.episode_id,
            "scene_id": episode.scene_id,
            "instruction": episode.instruction,
            "language": episode.language,
            **dataclasses.asdict(metrics),
            **details,
        }
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(row) + "\n")
        unfinished.rename(path)  # a file that is there is whole
        num_driven += 1
        if on_episode is not None:
            on_episode(episode.episode_id, metrics)
    return num_driven


def write_summary(episodes: Sequence[VlnCeEpisode], output: Path) -> dict[str, Any]:
    """Means over what was driven, rows that are not finite, and what is missing."""
    rows, missing = [], []
    for episode in episodes:
        path = output / "episodes" / f"{episode.episode_id}.json"
        if path.is_file():
            rows.append(json.loads(path.read_text()))
        else:
            missing.append(episode.episode_id)
    names = ("ne", "tl", "spl", "ndtw")
    not_finite = [r["episode_id"] for r in rows if not all(math.isfinite(r[n]) for n in names)]
    summary: dict[str, Any] = {
        "num_episodes": len(rows),
        "num_missing": len(missing),
        "episodes_not_finite": not_finite,
    }
    if rows:
        summary |= {"metrics": summarise(rows)}
        languages = sorted({row["language"] for row in rows})
        if len(languages) > 1:
            summary["by_language"] = {
                name: summarise([row for row in rows if row["language"] == name])
                for name in languages
            }
        steps = sum(row["steps"] for row in rows)
        summary["collisions_per_step"] = sum(row["num_collisions"] for row in rows) / max(1, steps)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary
