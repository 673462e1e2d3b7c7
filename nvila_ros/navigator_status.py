# SPDX-License-Identifier: Apache-2.0
"""What the navigator tells: its phase, how an episode ended, and what happened on the way."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from nvila_ros.decision import Decision
from nvila_ros.primitives import PrimitiveStep


class Phase(str, enum.Enum):
    """What the navigator is doing."""

    UNCONFIGURED = "unconfigured"  # of the lifecycle: nothing is loaded
    INACTIVE = "inactive"  # of the lifecycle: ready, but not allowed to move
    LOADING = "loading"  # the model is not there yet; an instruction waits for it
    IDLE = "idle"
    WAITING = "waiting"  # for an image taken after the last motion
    THINKING = "thinking"
    MOVING = "moving"
    PAUSED = "paused"
    EMERGENCY_STOP = "emergency_stop"  # until ~/clear_emergency_stop
    FAULT = "fault"  # no model, no valid configuration: instructions are refused


class Result(enum.IntEnum):
    """How an episode ended, in the manner of Nav2's error codes; numbers never change."""

    NONE = 0
    SUCCEEDED = 1
    CANCELED = 2
    TIMEOUT = 3
    STALE_SENSOR = 4
    OBSTACLE = 5
    MODEL_ERROR = 6
    REFUSED = 7  # the instruction cannot be used
    EMERGENCY_STOP = 8
    LOST = 9  # left and right in turn, or no progress
    LOW_CONFIDENCE = 10
    PREEMPTED = 11  # by a new instruction


@dataclass(frozen=True)
class Status:
    """What people are told; a new one is published when it differs from the last."""

    phase: Phase
    episode: int = 0
    result: Result = Result.NONE
    message: str = ""
    num_decisions: int = 0
    waiting_share: float | None = None  # of the episode's time, once it has ended


@dataclass(frozen=True)
class DecisionEvent:
    """A decision was taken."""

    episode: int
    step: int
    decision: Decision


@dataclass(frozen=True)
class PrimitiveEvent:
    """A motion ended."""

    episode: int
    step: int
    outcome: PrimitiveStep


@dataclass(frozen=True)
class PlanEvent:
    """What is left to drive has changed; no pose when nothing is."""

    poses: tuple[tuple[float, float, float], ...]  # x_m, y_m, yaw_rad in the odometry's frame


@dataclass(frozen=True)
class EpisodeEvent:
    """An episode ended."""

    episode: int
    result: Result
    duration_s: float  # from its instruction, without pauses
    waiting_s: float  # of it, standing and waiting for an image or for the model


Event = DecisionEvent | PrimitiveEvent | PlanEvent | EpisodeEvent


def decision_row(event: DecisionEvent) -> dict[str, Any]:
    """What `~/decision` says, as JSON."""
    decision = event.decision
    return {
        "episode": event.episode,
        "step": event.step,
        "sentence": decision.sentence,
        "index": decision.index,
        "confidence": round(decision.confidence, 4),
        "probabilities": [round(value, 4) for value in decision.probabilities],
        "latency_s": round(decision.latency_s, 4),
        "num_encoded_frames": decision.num_encoded_frames,
        "frame_indices": list(decision.frame_indices),
        "stamp_s": decision.stamp_s,
    }


def primitive_row(event: PrimitiveEvent) -> dict[str, Any]:
    """What `~/primitive` says, as JSON."""
    outcome = event.outcome
    return {
        "episode": event.episode,
        "step": event.step,
        "state": outcome.state.value,
        "reason": outcome.reason,
        "forward_m": round(outcome.forward_m, 4),
        "turn_rad": round(outcome.turn_rad, 4),
    }


def status_row(status: Status) -> dict[str, Any]:
    """What `~/state` says, as JSON."""
    return {
        "state": status.phase.value,
        "episode": status.episode,
        "result": status.result.name if status.result else None,
        "code": int(status.result),
        "message": status.message,
        "num_decisions": status.num_decisions,
        "waiting_share": None if status.waiting_share is None else round(status.waiting_share, 4),
    }
