# SPDX-License-Identifier: Apache-2.0
"""Motion primitives: one action becomes velocity commands, closed on odometry until it is done."""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass

from nvila_ros.errors import OdometryError
from nvila_ros.safety import MAX_POSE_JUMP_M, MAX_POSE_JUMP_RAD, Pose, Velocity
from nvila_ros.settings import check_settings, live_setting


@dataclass(frozen=True, kw_only=True)
class MotionConfig:
    """How fast and how exactly primitives are driven."""

    max_forward_m_s: float = live_setting(
        0.5, "speed of a forward motion, m/s", at_least=0.02, at_most=2.0
    )
    max_turn_rad_s: float = live_setting(1.0, "speed of a turn, rad/s", at_least=0.05, at_most=4.0)
    acceleration_m_s2: float = live_setting(
        1.0, "speeding up and braking, m/s^2", at_least=0.05, at_most=10.0
    )
    turn_acceleration_rad_s2: float = live_setting(
        3.0, "speeding up and braking of turns, rad/s^2", at_least=0.1, at_most=30.0
    )
    distance_tolerance_m: float = live_setting(
        0.025, "a forward motion is done within this distance, m", at_least=0.001, at_most=0.2
    )
    angle_tolerance_rad: float = live_setting(
        math.radians(3.0), "a turn is done within this angle, rad", at_least=0.002, at_most=0.3
    )
    heading_gain_per_s: float = live_setting(
        1.5, "turn rate per heading error that keeps a forward motion straight, 1/s", at_least=0.0
    )
    deadline_factor: float = live_setting(
        3.0, "a primitive may take this many times its ideal time", at_least=1.0
    )
    deadline_margin_s: float = live_setting(1.0, "and this much on top, s", at_least=0.0)
    stuck_time_s: float = live_setting(
        1.0, "no progress for this long while commanded means blocked, s", at_least=0.1
    )
    slip_m: float = live_setting(
        0.15,
        "off the straight line, or off the spot of a turn, this far means slip, m",
        at_least=0.02,
    )
    slip_rad: float = live_setting(
        0.35, "off the heading of a forward motion this far means slip, rad", at_least=0.05
    )
    slip_share: float = live_setting(
        0.2,
        "less than this share of what was commanded during stuck_time_s means slip; 0 is off",
        at_least=0.0,
        at_most=0.9,
    )
    obstacle_margin_m: float = live_setting(
        0.05, "free space to keep before the robot's edge, m", at_least=0.0, at_most=1.0
    )

    def __post_init__(self) -> None:
        check_settings(self)


# A motion is done within this share of its tolerance: the rest is for rolling out.
DONE_SHARE = 0.4


class PrimitiveState(str, enum.Enum):
    """Where a primitive stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True)
class PrimitiveStep:
    """One answer of a primitive: what to command now and how far it got."""

    velocity: Velocity
    state: PrimitiveState
    reason: str  # why it failed: 'timeout', 'obstacle', 'blocked', 'slip'; empty otherwise
    forward_m: float  # progress along the heading at the start
    turn_rad: float  # turned since the start, counted through full circles


class Primitive:
    """Drives `forward_m` straight ahead or turns by `turn_rad`, from the first pose it is given.

    The speed follows a trapezoid: it rises with the acceleration, holds the maximum, and brakes so
    that it ends at the target. What it was not asked to do it does not: an axis without a target
    only holds the heading.
    """

    def __init__(self, forward_m: float, turn_rad: float, config: MotionConfig) -> None:
        if (forward_m != 0.0) == (turn_rad != 0.0):
            raise ValueError(f"a primitive moves or turns, got {forward_m} m and {turn_rad} rad")
        self._turns = turn_rad != 0.0
        self._target = turn_rad if self._turns else forward_m
        self.reconfigure(config)
        self._start: Pose | None = None
        self._last_pose = (0.0, 0.0, 0.0)
        self._start_s = self._last_s = self._progress_s = 0.0
        self._speed = self._turned_rad = self._best = self._commanded = 0.0
        self._ways: deque[tuple[float, float, float]] = deque()  # (time, commanded, progress)
        self._end: PrimitiveStep | None = None

    def reconfigure(self, config: MotionConfig) -> None:
        """Other speeds and bounds from now on."""
        self._config = config
        if self._turns:
            self._max_speed = config.max_turn_rad_s
            self._acceleration = config.turn_acceleration_rad_s2
            self._tolerance = config.angle_tolerance_rad
        else:
            self._max_speed = config.max_forward_m_s
            self._acceleration = config.acceleration_m_s2
            self._tolerance = config.distance_tolerance_m

    @property
    def ideal_s(self) -> float:
        """Duration of the trapezoid with nothing in the way."""
        distance, ramp_s = abs(self._target), self._max_speed / self._acceleration
        if distance < self._max_speed * ramp_s:
            return 2.0 * math.sqrt(distance / self._acceleration)
        return distance / self._max_speed + ramp_s

    @property
    def deadline_s(self) -> float:
        """Time after the start at which it fails."""
        return self._config.deadline_factor * self.ideal_s + self._config.deadline_margin_s

    def update(
        self,
        x_m: float,
        y_m: float,
        yaw_rad: float,
        now_s: float,
        free_ahead_m: float = math.inf,
    ) -> PrimitiveStep:
        """The next command for a pose; OdometryError when the pose cannot be real."""
        if self._end is not None:
            return self._end
        self._track((x_m, y_m, yaw_rad), now_s)
        forward_m, across_rad = self._displacement()
        progress = (self._turned_rad if self._turns else forward_m) * math.copysign(1, self._target)
        remaining = abs(self._target) - progress
        reason = self._failure(progress, now_s, free_ahead_m)
        if remaining <= DONE_SHARE * self._tolerance:
            return self._finish(PrimitiveState.DONE, "", forward_m)
        if reason:
            return self._finish(PrimitiveState.FAILED, reason, forward_m)
        speed = math.copysign(self._next_speed(remaining, now_s), self._target)
        if self._turns:
            velocity = Velocity(0.0, speed)
        else:
            correction = -self._config.heading_gain_per_s * across_rad
            velocity = Velocity(speed, max(-0.5, min(0.5, correction)))
        return PrimitiveStep(velocity, PrimitiveState.RUNNING, "", forward_m, self._turned_rad)

    def remaining(self) -> tuple[float, float, float]:
        """(seconds, metres, radians) that are left, as far as the last pose tells."""
        done = self._turned_rad if self._turns else self._displacement()[0]
        left = max(abs(self._target) - done * math.copysign(1, self._target), 0.0)
        braking = self._speed**2 / (2.0 * self._acceleration)
        cruise_s = max(left - braking, 0.0) / self._max_speed
        # It is done before it has braked to zero: so near the target that it rolls out there.
        end_speed = math.sqrt(2.0 * self._acceleration * DONE_SHARE * self._tolerance)
        left_s = cruise_s + max(self._speed - end_speed, 0.0) / self._acceleration
        return (left_s, 0.0, left) if self._turns else (left_s, left, 0.0)

    def abort(self, reason: str) -> PrimitiveStep:
        """Ends it from outside; the answer says how far it got."""
        if self._end is None:
            self._finish(PrimitiveState.FAILED, reason, self._displacement()[0])
        assert self._end is not None
        return self._end

    def _track(self, pose: Pose, now_s: float) -> None:
        """Adds the newest pose; a jump is refused, it would be taken for progress."""
        if not all(math.isfinite(value) for value in pose):
            raise OdometryError(f"the pose {pose} is not finite: check the odometry source")
        if self._start is None:
            self._start = self._last_pose = pose
            self._start_s = self._last_s = self._progress_s = now_s
            return
        step_m = math.hypot(pose[0] - self._last_pose[0], pose[1] - self._last_pose[1])
        step_rad = math.remainder(pose[2] - self._last_pose[2], math.tau)
        if step_m > MAX_POSE_JUMP_M or abs(step_rad) > MAX_POSE_JUMP_RAD:
            raise OdometryError(f"the pose jumped by {step_m:.2f} m and {step_rad:.2f} rad")
        self._turned_rad += step_rad
        self._last_pose = pose

    def _displacement(self) -> tuple[float, float]:
        """(metres along the start heading, heading error against it)."""
        if self._start is None:
            return 0.0, 0.0
        x_m, y_m, yaw_rad = self._start
        forward_m = (self._last_pose[0] - x_m) * math.cos(yaw_rad) + (
            self._last_pose[1] - y_m
        ) * math.sin(yaw_rad)
        return forward_m, self._turned_rad

    def _failure(self, progress: float, now_s: float, free_ahead_m: float) -> str:
        """Why it cannot go on, or ''."""
        if progress > self._best + 0.25 * self._tolerance:
            self._best, self._progress_s = progress, now_s
        if now_s < self._last_s:
            return "clock went back"
        if now_s - self._start_s > self.deadline_s:
            return "timeout"
        if now_s - self._progress_s > self._config.stuck_time_s:
            return "blocked"
        if self._slips() or self._lags(progress, now_s):
            return "slip"
        if not self._turns and self._target > 0:
            braking_m = self._speed**2 / (2.0 * self._acceleration)
            # No number of metres is a lidar that cannot be trusted: hold still.
            if not free_ahead_m > braking_m + self._config.obstacle_margin_m:
                return "obstacle"
        return ""

    def _slips(self) -> bool:
        """Whether the robot goes where it was not sent: wheels slip, or somebody pushes."""
        assert self._start is not None
        x_m, y_m, yaw_rad = self._start
        moved = (self._last_pose[0] - x_m, self._last_pose[1] - y_m)
        if self._turns:
            return math.hypot(*moved) > self._config.slip_m
        along_m = moved[0] * math.cos(yaw_rad) + moved[1] * math.sin(yaw_rad)
        across_m = moved[1] * math.cos(yaw_rad) - moved[0] * math.sin(yaw_rad)
        backwards_m = -along_m * math.copysign(1, self._target)
        return (
            max(abs(across_m), backwards_m) > self._config.slip_m
            or abs(self._turned_rad) > self._config.slip_rad
        )

    def _lags(self, progress: float, now_s: float) -> bool:
        """Whether wheels turn for nothing: some way was made, but little of what was commanded."""
        self._commanded += self._speed * (now_s - self._last_s)
        self._ways.append((now_s, self._commanded, progress))
        window_s = self._config.stuck_time_s
        while len(self._ways) > 1 and now_s - self._ways[1][0] >= window_s:
            self._ways.popleft()
        then_s, commanded_then, progress_then = self._ways[0]
        if now_s - then_s < window_s:
            return False
        commanded, made = self._commanded - commanded_then, progress - progress_then
        # One that stands by now is "blocked", whatever it made when the window began; a slow end
        # within the tolerance is neither.
        is_way = commanded > 2.0 * self._tolerance and made > 0.25 * self._tolerance
        goes_on = now_s - self._progress_s <= 0.5 * window_s
        return is_way and goes_on and made < self._config.slip_share * commanded

    def _next_speed(self, remaining: float, now_s: float) -> float:
        """The trapezoid: what can be reached since the last command, what can still be braked."""
        interval_s = min(now_s - self._last_s, 0.2)
        self._last_s = now_s
        slowest = 0.1 * self._max_speed
        reachable = max(self._speed, slowest) + self._acceleration * interval_s
        # One interval passes before the next command: brake for the way that is left after it.
        ahead = max(remaining - self._speed * interval_s, 0.0)
        brakeable = math.sqrt(2.0 * self._acceleration * ahead)
        self._speed = max(slowest, min(self._max_speed, reachable, brakeable))
        return self._speed

    def _finish(self, state: PrimitiveState, reason: str, forward_m: float) -> PrimitiveStep:
        self._end = PrimitiveStep(Velocity.ZERO, state, reason, forward_m, self._turned_rad)
        return self._end
