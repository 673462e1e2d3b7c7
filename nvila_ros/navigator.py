# SPDX-License-Identifier: Apache-2.0
"""The navigator without ROS: instruction, images and odometry in; velocity, states and results out.

Every way out of an episode, and every doubt inside one, is zero velocity.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.errors import NvilaError, OdometryError
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_episode import EpisodeSteps
from nvila_ros.navigator_status import Event, Phase, Result, Status
from nvila_ros.safety import Pose, Velocity


class Navigator(EpisodeSteps):
    """One episode at a time, driven by `tick`; inputs may come from other threads.

    `now_s` is everywhere a clock that never goes back (silences are measured on it); `ros_s` is the
    robot's clock, which may be simulated (motions are timed on it). It moves only while it is
    active, which the node's lifecycle decides.
    """

    @property
    def status(self) -> Status:
        with self._lock:
            return self._status

    def take_events(self) -> list[Event]:
        """What happened since the last call, oldest first."""
        with self._lock:
            events, self._events = self._events, []
            return events

    def reconfigure(self, config: NavigatorConfig) -> None:
        """Other speeds, thresholds and bounds, at once; the motion under way takes them too."""
        with self._lock:
            self.config = self.watch.config = config
            self.senses.watchdog.reconfigure(config.safety)
            self._gate.reconfigure(config.safety)
            self.thinking.config = config.thinking
            if self._motion is not None:
                self._motion.reconfigure(config.motion)

    def activate(self) -> None:
        """May move from now on."""
        with self._lock:
            self._is_active = True
            self._rest()

    def deactivate(self) -> None:
        """Stands still; a running episode is canceled."""
        with self._lock:
            self._is_active = False
            if self._instruction is not None:
                self._finish(Result.CANCELED, "the node was deactivated")
            self._rest(self._status.result, self._status.message)

    def emergency_stop(self, reason: str) -> None:
        """Ends the episode; nothing moves until `clear_emergency_stop`."""
        with self._lock:
            if self._emergency:
                return
            self._emergency = reason
            if self._instruction is not None:
                self._finish(Result.EMERGENCY_STOP, reason)
            self._rest(Result.EMERGENCY_STOP, reason)

    def clear_emergency_stop(self) -> bool:
        """Instructions are taken again; says whether there was a stop."""
        with self._lock:
            was_stopped, self._emergency = bool(self._emergency), ""
            if was_stopped:
                self._rest()
            return was_stopped

    @property
    def emergency(self) -> str:
        """Why the emergency stop is engaged, or ''."""
        return self._emergency

    def wants_images(self) -> bool:
        """Whether images are looked at; otherwise only their arrival counts."""
        with self._lock:
            return self._instruction is not None and self._worker.policy is not None

    def hear_image(self, rgb: np.ndarray | None, stamp_s: float, now_s: float) -> str:
        """A usable image (or its arrival only); why it does not count, or ''.

        ImageError when the policy cannot use it. A robot that waited for it begins to think.
        """
        with self._lock:
            problem = self.senses.hear_image(rgb, stamp_s, now_s)
            if problem:
                if self.senses.images_went_back and self._status.phase is Phase.MOVING:
                    self._give_up_motion(problem)
                    self._wait_for_image(now_s, settle_s=0.0, message=f"holding still: {problem}")
                return problem
            policy, pose = self._worker.policy, self.senses.pose
            if rgb is None or policy is None or self._instruction is None or pose is None:
                return ""
            policy.observe(rgb, *pose, stamp_s)
            if self._status.phase is Phase.MOVING:
                self._think_ahead(now_s)
            elif self._is_image_wanted(now_s) and not self._hold_while_silent(now_s):
                self._ask(now_s)
                self._set(Phase.THINKING)
            return ""

    def hear_odometry(self, pose: Pose, now_s: float, stamp_s: float = 0.0) -> str:
        """A finite pose (x, y, yaw); why it does not count, or ''."""
        with self._lock:
            return self.senses.hear_odometry(pose, now_s, stamp_s)

    def hear_scan(self, free_ahead_m: float, now_s: float) -> None:
        """How far the way ahead is free; nan when the lidar knows nothing."""
        with self._lock:
            self.senses.hear_scan(free_ahead_m, now_s)

    def hear_blocked(self, reason: str) -> None:
        """Somebody else stops the robot ('' when no more): forward motions end as obstacles."""
        with self._lock:
            self.senses.hear_blocked(reason)

    def hear_listeners(self, count: int) -> None:
        """How many listen to the commands: without one a motion would be a wish."""
        with self._lock:
            self.senses.num_listeners = count

    def instruct(self, text: str, now_s: float) -> None:
        """Begins an episode; NvilaError, and the old one goes on, when the text is refused."""
        with self._lock:
            if self._fault or self._emergency:
                raise NvilaError(
                    self._fault or f"emergency stop: {self._emergency}; call ~/clear_emergency_stop"
                )
            if not self._is_active:
                raise NvilaError("the node is not active; activate it first")
            if self._instruction is not None and not self.config.preempt:
                raise NvilaError(
                    f"another instruction is running, {self._instruction!r}; call ~/cancel first, "
                    "or set preempt"
                )
            policy = self._worker.policy
            if policy is not None:
                policy.reset(text)  # raises InstructionError before anything was changed
            if self._instruction is not None:
                self._finish(Result.PREEMPTED, "a new instruction came")
            self._begin(text, now_s)

    def cancel(self) -> bool:
        """Ends the episode; says whether there was one."""
        with self._lock:
            running = self._instruction is not None
            if running:
                self._finish(Result.CANCELED, "canceled")
            return running

    def pause(self) -> bool:
        """Holds still until `resume`; a motion that was under way is given up."""
        with self._lock:
            if self._instruction is None or self._status.phase in (Phase.PAUSED, Phase.LOADING):
                return False
            self._halt("paused")
            self._set(Phase.PAUSED, Result.NONE, "paused")
            return True

    def resume(self, now_s: float) -> bool:
        """Goes on from a fresh image."""
        with self._lock:
            if self._status.phase is not Phase.PAUSED:
                return False
            self._wait_for_image(now_s, settle_s=0.0)
            return True

    def tick(self, now_s: float, ros_s: float) -> Velocity:
        """Called at the control rate, and when an answer came: what to command now."""
        with self._lock:
            self.times.add(self._status.phase, self._silent_since_s is not None, now_s)
            try:
                self._advance(now_s, ros_s)
            except OdometryError as error:
                self._give_up_motion(str(error))
                self._motion_failed(str(error), now_s)
            return self._gate.take(now_s) if self.config.execute else Velocity.ZERO
