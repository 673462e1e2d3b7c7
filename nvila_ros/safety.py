# SPDX-License-Identifier: Apache-2.0
"""The last word before cmd_vel: watched sensors, limited speeds; whatever is unknown is zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nvila_ros.errors import OdometryError
from nvila_ros.settings import check_settings, live_setting

Pose = tuple[float, float, float]  # x_m, y_m, yaw_rad

# Between two odometry messages no robot moves or turns further than this (metres, radians).
MAX_POSE_JUMP_M = 0.5
MAX_POSE_JUMP_RAD = 1.0


@dataclass(frozen=True)
class Velocity:
    """A command in the robot's frame: forward in m/s, counter-clockwise in rad/s."""

    forward_m_s: float
    turn_rad_s: float

    ZERO: ClassVar[Velocity]

    def is_zero(self) -> bool:
        return self.forward_m_s == 0.0 and self.turn_rad_s == 0.0


Velocity.ZERO = Velocity(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """How old things may get before the robot stops, and how fast it may ever go."""

    max_image_age_s: float = live_setting(
        1.0, "without an image for this long the robot stops, s", at_least=0.05
    )
    max_odometry_age_s: float = live_setting(
        0.5, "without odometry for this long the robot stops, s", at_least=0.02
    )
    max_scan_age_s: float = live_setting(
        1.0, "a lidar that was heard and is silent for this long stops the robot, s", at_least=0.05
    )
    command_timeout_s: float = live_setting(
        0.25, "a command that was not renewed for this long becomes zero, s", at_least=0.02
    )
    forward_limit_m_s: float = live_setting(
        1.0, "hard limit of the forward speed, m/s", at_least=0.0, at_most=3.0
    )
    turn_limit_rad_s: float = live_setting(
        1.5, "hard limit of the turn rate, rad/s", at_least=0.0, at_most=6.0
    )
    robot_radius_m: float = live_setting(
        0.20, "radius of the robot's footprint, m", at_least=0.0, at_most=2.0
    )

    def __post_init__(self) -> None:
        check_settings(self)


def limited(velocity: Velocity, config: SafetyConfig) -> Velocity:
    """The velocity within the hard limits; zero where it is no number."""
    if not (math.isfinite(velocity.forward_m_s) and math.isfinite(velocity.turn_rad_s)):
        return Velocity.ZERO
    forward, turn = config.forward_limit_m_s, config.turn_limit_rad_s
    return Velocity(
        max(-forward, min(forward, velocity.forward_m_s)),
        max(-turn, min(turn, velocity.turn_rad_s)),
    )


class Watchdog:
    """Remembers when each sensor was last heard; all times on one clock that never goes back."""

    def __init__(self, config: SafetyConfig) -> None:
        self._heard_s: dict[str, float] = {}
        self.reconfigure(config)

    def reconfigure(self, config: SafetyConfig) -> None:
        """Other limits from now on."""
        self._limits_s = {
            "image": config.max_image_age_s,
            "odometry": config.max_odometry_age_s,
            "scan": config.max_scan_age_s,
        }

    def hear(self, sensor: str, now_s: float) -> None:
        """A usable message of 'image', 'odometry' or 'scan' arrived."""
        self._heard_s[sensor] = now_s

    def stale(self, now_s: float) -> str:
        """Why the robot must hold still, or ''; a lidar is only missed once it was heard."""
        for sensor, limit_s in self._limits_s.items():
            heard_s = self._heard_s.get(sensor)
            if heard_s is None:
                if sensor != "scan":
                    return f"no {sensor} yet"
            elif not 0.0 <= now_s - heard_s <= limit_s:
                return f"no {sensor} for more than {limit_s:g} s"
        return ""


class CommandGate:
    """Holds the newest command; what is old, not finite or never given comes out as zero."""

    def __init__(self, config: SafetyConfig) -> None:
        self._config = config
        self._velocity = Velocity.ZERO
        self._given_s = -math.inf

    def reconfigure(self, config: SafetyConfig) -> None:
        """Other limits from the next command on."""
        self._config = config

    def give(self, velocity: Velocity, now_s: float) -> None:
        """Renews the command."""
        self._velocity, self._given_s = limited(velocity, self._config), now_s

    def stop(self) -> None:
        """Zero from now on, until the next command."""
        self._velocity, self._given_s = Velocity.ZERO, -math.inf

    def take(self, now_s: float) -> Velocity:
        """What may go out now."""
        fresh = 0.0 <= now_s - self._given_s <= self._config.command_timeout_s
        return self._velocity if fresh else Velocity.ZERO


def checked_pose(x_m: float, y_m: float, quaternion_xyzw: Sequence[float]) -> Pose:
    """(x, y, yaw) of an odometry message; OdometryError when it is not finite or no rotation."""
    x, y, z, w = quaternion_xyzw
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not (math.isfinite(x_m) and math.isfinite(y_m) and math.isfinite(norm)):
        raise OdometryError(
            f"odometry is not finite (x {x_m}, y {y_m}, orientation {tuple(quaternion_xyzw)}); "
            "check the odometry source"
        )
    if not 0.9 < norm < 1.1:
        raise OdometryError(f"the odometry's orientation has length {norm:.3f}, expected 1")
    return x_m, y_m, math.atan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z))


def free_ahead_m(
    ranges_m: np.ndarray, angle_min_rad: float, angle_step_rad: float, radius_m: float
) -> float:
    """How far a disc at the lidar's place can go straight ahead before it touches a return.

    (R,) ranges; infinite ones saw nothing, zero, negative and not-a-number ones are no returns.
    A scan without a single usable or infinite ray gives nan: nothing is known.
    """
    ranges_m = np.asarray(ranges_m, float)
    known = (ranges_m > 0.0) & ~np.isnan(ranges_m)
    if not known.any():
        return math.nan
    angles_rad = angle_min_rad + angle_step_rad * np.arange(len(ranges_m))
    hit = known & np.isfinite(ranges_m)
    ahead_m = ranges_m[hit] * np.cos(angles_rad[hit])
    beside_m = ranges_m[hit] * np.sin(angles_rad[hit])
    in_the_way = (np.abs(beside_m) < radius_m) & (ahead_m > 0.0)
    if not in_the_way.any():
        return math.inf
    edge_m = np.sqrt(radius_m**2 - beside_m[in_the_way] ** 2)
    return float((ahead_m[in_the_way] - edge_m).min())
