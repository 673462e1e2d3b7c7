# SPDX-License-Identifier: Apache-2.0
"""The navigator without ROS: instruction, images and odometry in; velocity, states and results out.

Every way out of an episode, and every doubt inside one, is zero velocity.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np

from nvila_ros.decision import Decision
from nvila_ros.decision_worker import Answer, DecisionWorker
from nvila_ros.errors import NvilaError, OdometryError
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import (
    DecisionEvent,
    Event,
    Phase,
    PrimitiveEvent,
    Result,
    Status,
)
from nvila_ros.primitives import Primitive, PrimitiveState, PrimitiveStep
from nvila_ros.safety import CommandGate, Pose, Velocity, Watchdog


class Navigator:
    """One episode at a time, driven by `tick`; inputs may come from other threads.

    `now_s` is everywhere a clock that never goes back (silences are measured on it); `ros_s` is the
    robot's clock, which may be simulated (motions are timed on it).
    """

    def __init__(self, config: NavigatorConfig, worker: DecisionWorker) -> None:
        self.config = config
        self._worker = worker
        self._lock = threading.RLock()
        self._watchdog = Watchdog(config.safety)
        self._gate = CommandGate(config.safety)
        self._status = Status(Phase.LOADING)
        self._events: list[Event] = []
        self._instruction: str | None = None  # of the running episode
        self._pose: Pose | None = None
        self._free_ahead_m = math.inf
        self._primitive: Primitive | None = None
        self._decision: Decision | None = None  # whose motion is under way
        self._image_s = -math.inf
        self._wanted_after_s = -math.inf  # an image must be newer than this to decide on
        self._asked_s = 0.0
        self._ticket = 0
        self._silent_since_s: float | None = None
        self._num_failed = 0

    @property
    def status(self) -> Status:
        with self._lock:
            return self._status

    def take_events(self) -> list[Event]:
        """What happened since the last call, oldest first."""
        with self._lock:
            events, self._events = self._events, []
            return events

    def disable(self, message: str) -> None:
        """Refuses everything from now on: the node was configured wrongly."""
        with self._lock:
            self._halt()
            self._instruction = None
            self._set(Phase.FAULT, Result.NONE, message)

    def wants_images(self) -> bool:
        """Whether images are looked at; otherwise only their arrival counts."""
        with self._lock:
            return self._instruction is not None and self._worker.policy is not None

    def hear_image(self, rgb: np.ndarray | None, stamp_s: float, now_s: float) -> None:
        """A usable image (or its arrival only); ImageError when the policy cannot use it."""
        with self._lock:
            policy, pose = self._worker.policy, self._pose
            if rgb is not None and policy is not None and self._instruction and pose is not None:
                policy.observe(rgb, *pose, stamp_s)
                self._image_s = now_s
                if self._status.phase is Phase.MOVING:
                    self._worker.ask_to_prepare()
            self._watchdog.hear("image", now_s)

    def hear_odometry(self, pose: Pose, now_s: float) -> None:
        """A finite pose (x, y, yaw)."""
        with self._lock:
            self._pose = pose
            self._watchdog.hear("odometry", now_s)

    def hear_scan(self, free_ahead_m: float, now_s: float) -> None:
        """How far the way ahead is free; nan when the lidar knows nothing."""
        with self._lock:
            self._free_ahead_m = free_ahead_m
            self._watchdog.hear("scan", now_s)

    def instruct(self, text: str, now_s: float) -> None:
        """Begins an episode; NvilaError, and the old one goes on, when the text is refused."""
        with self._lock:
            phase = self._status.phase
            if phase is Phase.FAULT:
                raise NvilaError(self._status.message)
            if self._instruction is not None and not self.config.preempt:
                raise NvilaError("another one is running; call ~/cancel first, or set preempt")
            policy = self._worker.policy
            if policy is not None:
                policy.reset(text)  # raises InstructionError before anything was changed
            self._halt()
            self._instruction = text
            self._num_failed = 0
            self._status = Status(self._status.phase, self._status.episode + 1)
            if policy is None:
                self._set(Phase.LOADING, Result.NONE, "the model is loading")
            else:
                self._wait_for_image(now_s, settle_s=0.0)

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
            self._give_up_motion("paused")
            self._halt()
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
        """Called at the control rate: what to command now."""
        with self._lock:
            try:
                self._advance(now_s, ros_s)
            except OdometryError as error:
                self._give_up_motion(str(error))
                self._motion_failed(str(error), now_s)
            return self._gate.take(now_s) if self.config.execute else Velocity.ZERO

    def _advance(self, now_s: float, ros_s: float) -> None:
        phase = self._status.phase
        if phase is Phase.LOADING:
            self._look_for_policy(now_s)
        elif phase in (Phase.WAITING, Phase.THINKING, Phase.MOVING):
            if self._hold_while_silent(now_s):
                return
            if phase is Phase.WAITING and self._image_s > self._wanted_after_s:
                self._ask(now_s)
            elif phase is Phase.THINKING:
                self._look_for_answer(now_s)
            elif phase is Phase.MOVING:
                self._move(now_s, ros_s)

    def _look_for_policy(self, now_s: float) -> None:
        if self._worker.load_error:
            self.disable(f"the model cannot be loaded: {self._worker.load_error}")
        elif self._worker.policy is not None:
            text, self._instruction = self._instruction, None
            self._set(Phase.IDLE)
            if text is not None:
                try:
                    self._worker.policy.reset(text)
                except NvilaError as error:
                    self._set(Phase.IDLE, Result.REFUSED, str(error))
                    return
                self._instruction = text
                self._wait_for_image(now_s, settle_s=0.0)

    def _hold_while_silent(self, now_s: float) -> bool:
        """Zero while a sensor is silent; the episode ends when that lasts."""
        reason = self._watchdog.stale(now_s)
        if not reason:
            self._silent_since_s = None
            return False
        if self._silent_since_s is None:
            self._silent_since_s = now_s
        self._give_up_motion(reason)
        if now_s - self._silent_since_s > self.config.patience_s:
            self._finish(Result.STALE_SENSOR, reason)
        else:
            self._wait_for_image(now_s, settle_s=0.0, message=f"holding still: {reason}")
        return True

    def _ask(self, now_s: float) -> None:
        self._ticket += 1
        self._asked_s = now_s
        self._worker.ask(self._ticket)
        self._set(Phase.THINKING)

    def _look_for_answer(self, now_s: float) -> None:
        answer = self._worker.take_answer(self._ticket)
        if answer is not None:
            self._obey(answer, now_s)
        elif now_s - self._asked_s > self.config.decision_timeout_s:
            limit_s = self.config.decision_timeout_s
            self._finish(Result.MODEL_ERROR, f"the model has not answered for {limit_s} s")

    def _obey(self, answer: Answer, now_s: float) -> None:
        decision = answer.decision
        if decision is None:
            self._finish(Result.MODEL_ERROR, answer.error)
            return
        step = self._status.num_decisions
        self._status = replace(self._status, num_decisions=step + 1)
        self._events.append(DecisionEvent(self._status.episode, step, decision))
        action = decision.action
        if action.kind == "stop":
            self._finish(Result.SUCCEEDED, decision.sentence)
        elif step + 1 >= self.config.max_decisions:
            self._finish(Result.TIMEOUT, f"no stop after {step + 1} decisions")
        elif not self.config.execute:
            self._wait_for_image(now_s, settle_s=1.0, message=f"would do: {decision.sentence}")
        else:
            self._primitive = Primitive(action.forward_m, action.turn_rad, self.config.motion)
            self._decision = decision
            self._set(Phase.MOVING, Result.NONE, decision.sentence)

    def _move(self, now_s: float, ros_s: float) -> None:
        assert self._primitive is not None and self._pose is not None
        outcome = self._primitive.update(*self._pose, ros_s, self._free_ahead_m)
        self._gate.give(outcome.velocity, now_s)
        if outcome.state is PrimitiveState.RUNNING:
            return
        self._end_motion(outcome)
        if self._worker.policy is not None and self._decision is not None:
            self._worker.policy.tried(self._decision)
        if outcome.state is PrimitiveState.DONE:
            self._num_failed = 0
            self._wait_for_image(now_s, self.config.settle_time_s)
        else:
            self._motion_failed(outcome.reason, now_s)

    def _motion_failed(self, reason: str, now_s: float) -> None:
        """The model decides anew from where the robot stands, but not for ever."""
        self._num_failed += 1
        if self._num_failed >= self.config.max_failed_primitives:
            self._finish(
                Result.OBSTACLE, f"{self._num_failed} motions failed in a row, the last: {reason}"
            )
        else:
            self._wait_for_image(now_s, self.config.settle_time_s, f"motion failed: {reason}")

    def _wait_for_image(self, now_s: float, settle_s: float, message: str = "") -> None:
        self._gate.stop()
        self._wanted_after_s = now_s + settle_s
        self._set(Phase.WAITING, Result.NONE, message)

    def _give_up_motion(self, reason: str) -> None:
        if self._primitive is not None:
            self._end_motion(self._primitive.abort(reason))

    def _end_motion(self, outcome: PrimitiveStep) -> None:
        self._gate.stop()
        self._primitive = None
        step = self._status.num_decisions - 1
        self._events.append(PrimitiveEvent(self._status.episode, step, outcome))

    def _halt(self) -> None:
        self._gate.stop()
        self._primitive = None
        self._silent_since_s = None
        self._worker.drop()

    def _finish(self, result: Result, message: str) -> None:
        self._give_up_motion(message)
        self._halt()
        self._instruction = None
        self._set(Phase.IDLE, result, message)

    def _set(self, phase: Phase, result: Result = Result.NONE, message: str = "") -> None:
        self._status = replace(self._status, phase=phase, result=result, message=message)
