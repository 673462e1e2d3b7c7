# SPDX-License-Identifier: Apache-2.0
"""Runs a policy over a recording, without a robot, and compares what it decides with what was said.

The policy hears the recorded frames with the recorded poses and is asked whenever the recorded one
was; what was driven in between is what the recorded one chose. So each decision is compared from
the same past, and a difference early on does not carry over.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nvila_ros.actions import ACTIONS
from nvila_ros.decision import Decision, Policy
from nvila_ros.errors import DataError, ImageError
from nvila_ros.evaluation.metrics import wilson_interval
from nvila_ros.recording.bag_episodes import BagEpisode
from nvila_ros.recording.bag_messages import Picture, Said
from nvila_ros.recording.bag_reader import Recording

STAMP_TOLERANCE_S = 1e-3


@dataclass(frozen=True)
class ComparedDecision:
    """One decision, twice."""

    episode: int
    step: int
    stamp_s: float
    recorded: int  # index of ACTIONS
    replayed: int
    recorded_confidence: float
    replayed_confidence: float
    distance: float | None  # total variation between the two distributions, in [0, 1]
    latency_s: float

    @property
    def agrees(self) -> bool:
        return self.recorded == self.replayed


@dataclass
class Replayed:
    """All decisions of a recording."""

    decisions: list[ComparedDecision] = field(default_factory=list)
    num_frames: int = 0
    num_broken: int = 0  # pictures that could not be decoded
    num_unplaced: int = 0  # decisions before whose frame no picture was recorded


def replay(recording: Recording, episodes: list[BagEpisode], policy: Policy) -> Replayed:
    """Asks the policy at every recorded decision; DataError where the bag holds none."""
    require_decisions(recording, episodes)
    found = Replayed()
    pictures = _Ahead(recording.pictures())
    for episode in episodes:
        if episode.decisions:
            policy.reset(episode.instruction)
            _replay_episode(recording, episode, pictures, policy, found)
    if not found.decisions:
        raise DataError(
            f"{recording.path} holds no picture before any of its decisions; was the camera's "
            f"topic {recording.topics['image']} recorded from the start?"
        )
    return found


def require_decisions(recording: Recording, episodes: list[BagEpisode]) -> None:
    """DataError where there is nothing to compare with."""
    if not any(episode.decisions for episode in episodes):
        raise DataError(
            f"{recording.path} holds no decisions (a topic that ends in /decision); record with "
            "`nvila record` while the navigator drives"
        )


def summary(found: Replayed) -> dict[str, Any]:
    """Agreement with its 95 % Wilson interval, where it differs, and how fast it was."""
    rows = found.decisions
    count, same = len(rows), sum(row.agrees for row in rows)
    distances = [row.distance for row in rows if row.distance is not None]
    kinds = [(ACTIONS[row.recorded].kind, ACTIONS[row.replayed].kind) for row in rows]
    low, high = wilson_interval(same, count)
    differences = Counter((row.recorded, row.replayed) for row in rows if not row.agrees)
    latencies_s = [row.latency_s for row in rows]
    return {
        "num_decisions": count,
        "num_frames": found.num_frames,
        "num_broken_frames": found.num_broken,
        "num_unplaced_decisions": found.num_unplaced,
        "agreement": same / count if count else None,
        "agreement_interval": [low, high],
        "kind_agreement": sum(a == b for a, b in kinds) / count if count else None,
        "mean_distance": float(np.mean(distances)) if distances else None,
        "latency_p50_s": float(np.median(latencies_s)) if rows else None,
        "differences": [
            {"recorded": ACTIONS[a].sentence, "replayed": ACTIONS[b].sentence, "count": times}
            for (a, b), times in differences.most_common()
        ],
        "decisions": [{**dataclasses.asdict(row), "agrees": row.agrees} for row in rows],
    }


class _Ahead:
    """Pictures one after the other, the next one visible."""

    def __init__(self, pictures: Iterator[Picture]) -> None:
        self._pictures = pictures
        self.next: Picture | None = next(pictures, None)

    def take(self) -> Picture:
        """The next one."""
        taken, self.next = self.next, next(self._pictures, None)
        assert taken is not None
        return taken


def _replay_episode(
    recording: Recording,
    episode: BagEpisode,
    pictures: _Ahead,
    policy: Policy,
    found: Replayed,
) -> None:
    while pictures.next is not None and pictures.next.log_s < episode.begin_s:
        pictures.take()
    num_seen = 0
    for said in episode.decisions:
        until_s = _stamp_s(said)
        while pictures.next is not None and _is_before(pictures.next, until_s, said):
            picture = pictures.take()
            try:
                rgb = picture.rgb()
            except ImageError:
                found.num_broken += 1
                continue
            policy.observe(rgb, *recording.pose_at(picture.stamp_s), picture.stamp_s)
            num_seen += 1
            found.num_frames += 1
        if num_seen == 0:
            found.num_unplaced += 1
            continue
        decision = policy.decide()
        recorded = int(said.row["index"])
        policy.tried(dataclasses.replace(decision, action=ACTIONS[recorded]))
        found.decisions.append(_compared(episode.number, said, recorded, decision))


def _is_before(picture: Picture, until_s: float, said: Said) -> bool:
    """Whether the recorded decision can have seen the picture."""
    if math.isfinite(until_s):
        return picture.stamp_s <= until_s + STAMP_TOLERANCE_S
    return picture.log_s <= said.log_s


def _compared(episode: int, said: Said, recorded: int, decision: Decision) -> ComparedDecision:
    probabilities = said.row.get("probabilities") or ()
    distance = None
    if len(probabilities) == len(decision.probabilities):
        distance = float(0.5 * np.abs(np.subtract(probabilities, decision.probabilities)).sum())
    return ComparedDecision(
        episode=episode,
        step=int(said.row.get("step", 0)),
        stamp_s=decision.stamp_s,
        recorded=recorded,
        replayed=decision.index,
        recorded_confidence=float(said.row.get("confidence", math.nan)),
        replayed_confidence=decision.confidence,
        distance=distance,
        latency_s=decision.latency_s,
    )


def _stamp_s(said: Said) -> float:
    value = said.row.get("stamp_s")
    return float(value) if isinstance(value, (int, float)) else math.nan
