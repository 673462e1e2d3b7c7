# SPDX-License-Identifier: Apache-2.0
"""The steps of an episode: wait for an image, think, move, and what may go wrong on the way."""

from __future__ import annotations

import threading
from dataclasses import replace

from nvila_ros.decision import Decision
from nvila_ros.decision_worker import Answer, DecisionWorker
from nvila_ros.episode_watch import End, EpisodeWatch
from nvila_ros.errors import NvilaError
from nvila_ros.motion import MakeMotion, Motion, own_motion, planned_poses
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_senses import Senses
from nvila_ros.navigator_status import (
    DecisionEvent,
    EpisodeEvent,
    Event,
    Phase,
    PlanEvent,
    PrimitiveEvent,
    Result,
    Status,
)
from nvila_ros.navigator_times import EpisodeTimes
from nvila_ros.primitives import PrimitiveState, PrimitiveStep
from nvila_ros.rolling import Durations
from nvila_ros.safety import CommandGate
from nvila_ros.think_ahead import ThinkAhead

_RUNNING = (Phase.WAITING, Phase.THINKING, Phase.MOVING)


class EpisodeSteps:
    """State of the navigator and the steps of its episodes; whoever calls holds the lock."""

    def __init__(
        self,
        config: NavigatorConfig,
        worker: DecisionWorker,
        make_motion: MakeMotion = own_motion,
        is_active: bool = True,
    ) -> None:
        self.config = config
        self.senses = Senses(config.safety)
        self.thinking = ThinkAhead(config.thinking)
        self.watch = EpisodeWatch(config)
        self.times = EpisodeTimes()
        self.latency = Durations()  # of decisions, from question to answer
        self.last_confidence = float("nan")
        self.num_watchdog_trips = 0
        self._worker = worker
        self._make_motion = make_motion
        self._lock = threading.RLock()
        self._gate = CommandGate(config.safety)
        self._status = Status(Phase.LOADING)
        self._events: list[Event] = []
        self._instruction: str | None = None  # of the running episode
        self._is_active = is_active
        self._fault = ""
        self._emergency = ""  # why the emergency stop is engaged
        self._motion: Motion | None = None
        self._decision: Decision | None = None  # whose motion is under way
        self._wanted_after_s = float("-inf")  # an image must be newer than this to decide on
        self._answer: Answer | None = None  # that came before the motion ended
        self._asked_s: float | None = None  # when the decision under way was asked for
        self._ticket = 0
        self._silent_since_s: float | None = None

    def disable(self, message: str) -> None:
        """Refuses everything from now on: the node was configured wrongly, or is ending."""
        with self._lock:
            self._fault = message
            if self._instruction is not None:
                self._finish(Result.CANCELED, message)
            self._rest(Result.NONE, message)

    def _advance(self, now_s: float, ros_s: float) -> None:
        if loss := self._worker.lost():
            if self._instruction is not None:
                self._finish(Result.MODEL_ERROR, loss)
            self._rest(self._status.result, loss)
        phase = self._status.phase
        if phase is Phase.LOADING:
            self._look_for_policy(now_s)
        elif phase in _RUNNING and not self._hold_while_silent(now_s):
            if phase is Phase.THINKING:
                self._look_for_answer(now_s, ros_s)
            elif phase is Phase.MOVING and not self._has_failed_meanwhile(now_s):
                self._move(now_s, ros_s)

    def _look_for_policy(self, now_s: float) -> None:
        if self._worker.load_error:
            self.disable(f"the model cannot be loaded: {self._worker.load_error}")
        elif self._worker.policy is not None:
            text, self._instruction = self._instruction, None
            self._rest(self._status.result, self._status.message)
            if text is None:
                return
            try:
                self._worker.policy.reset(text)
            except NvilaError as error:
                self._rest(Result.REFUSED, str(error))
            else:
                self._instruction = text
                self._wait_for_image(now_s, settle_s=0.0)

    def _begin(self, text: str, now_s: float) -> None:
        self._instruction = text
        self._silent_since_s = None
        self.watch.begin()
        self.times.begin(now_s)
        self._status = Status(self._status.phase, self._status.episode + 1)
        if self._worker.policy is None:
            self._set(Phase.LOADING, Result.NONE, "the model is loading")
        else:
            self._wait_for_image(now_s, settle_s=0.0)

    def _hold_while_silent(self, now_s: float) -> bool:
        """Zero while a sensor is silent; the episode ends when that lasts."""
        reason = self.senses.problem(now_s)
        if not reason:
            self._silent_since_s = None
            return False
        if self._silent_since_s is None:
            self._silent_since_s = now_s
            self.num_watchdog_trips += 1
        self._give_up_motion(reason)
        if now_s - self._silent_since_s > self.config.patience_s:
            self._finish(Result.STALE_SENSOR, reason)
        else:
            self._wait_for_image(now_s, settle_s=0.0, message=f"holding still: {reason}")
        return True

    def _is_image_wanted(self, now_s: float) -> bool:
        """Whether an image that came now is one to decide on."""
        return self._status.phase is Phase.WAITING and now_s > self._wanted_after_s

    def _ask(self, now_s: float) -> None:
        self._ticket += 1
        self._answer = None
        self._asked_s = now_s
        self._worker.ask(self._ticket)

    def _think_ahead(self, now_s: float) -> None:
        """While moving: the next decision where the motion is nearly done, else only encoding."""
        assert self._motion is not None and self._worker.policy is not None
        if self._asked_s is not None:
            return
        rate_hz = self.senses.images.rate_hz(now_s)
        if self.thinking.is_time(*self._motion.remaining(), 1.0 / max(rate_hz, 1.0)):
            if self._decision is not None:
                self._worker.policy.tried(self._decision)
                self._decision = None
            self._ask(now_s)
        else:
            self._worker.ask_to_prepare()

    def _has_failed_meanwhile(self, now_s: float) -> bool:
        """Whether the model failed while the robot moves: then it does not move on."""
        if self._asked_s is None or self._answer is not None:
            return False
        self._answer = self._worker.take_answer(self._ticket)
        if self._answer is None or self._answer.decision is not None or self._answer.is_refusal:
            return False
        self._obey(self._answer, now_s)
        return True

    def _look_for_answer(self, now_s: float, ros_s: float) -> None:
        answer, self._answer = self._answer or self._worker.take_answer(self._ticket), None
        asked_s = now_s if self._asked_s is None else self._asked_s
        if answer is not None:
            if answer.decision is not None:
                self.latency.add(answer.decision.latency_s)
                self.last_confidence = answer.decision.confidence
                self.thinking.latency.add(answer.decision.latency_s)
            self._asked_s = None
            self._obey(answer, now_s)
            if self._status.phase is Phase.MOVING:
                self._move(now_s, ros_s)
        elif now_s - asked_s > self.config.decision_timeout_s:
            self._worker.give_up()
            limit_s = self.config.decision_timeout_s
            self._finish(Result.MODEL_ERROR, f"the model has not answered for {limit_s} s")

    def _obey(self, answer: Answer, now_s: float) -> None:
        decision, end = answer.decision, None
        if decision is None:
            if not answer.is_refusal:
                self._finish(Result.MODEL_ERROR, answer.error)
                return
            end = self.watch.refused(answer.error)
            self._end_or_wait(end, now_s, f"answer refused: {answer.error}")
            return
        step = self._status.num_decisions
        self._status = replace(self._status, num_decisions=step + 1)
        self._events.append(DecisionEvent(self._status.episode, step, decision))
        pose = self.senses.pose
        if self.watch.unsure(decision):
            message = f"too unsure ({decision.confidence:.2f}): {decision.sentence}"
            self._end_or_wait(self.watch.unsure_end(), now_s, message)
        elif decision.action.kind == "stop":
            self._finish(Result.SUCCEEDED, decision.sentence)
        elif end := self.watch.decided(decision, step + 1, pose):
            self._finish(*end)
        elif not self.config.execute:
            self._wait_for_image(now_s, settle_s=1.0, message=f"would do: {decision.sentence}")
        elif pose is None or (left := self.thinking.left_of(decision, pose)) is None:
            self._wait_for_image(now_s, settle_s=0.0, message="the robot moved on; deciding anew")
        else:
            self._motion = self._make_motion(*left, self.config.motion)
            self._decision = decision
            self._events.append(PlanEvent(planned_poses(pose, *left)))
            self._set(Phase.MOVING, Result.NONE, decision.sentence)

    def _end_or_wait(self, end: End | None, now_s: float, message: str) -> None:
        if end is not None:
            self._finish(*end)
        else:
            self._wait_for_image(now_s, self.config.settle_time_s, message)

    def _move(self, now_s: float, ros_s: float) -> None:
        pose = self.senses.pose
        assert self._motion is not None and pose is not None
        outcome = self._motion.update(*pose, ros_s, self.senses.usable_free_ahead_m())
        self._gate.give(outcome.velocity, now_s)
        if outcome.state is PrimitiveState.RUNNING:
            return
        self._end_motion(outcome)
        if self._worker.policy is not None and self._decision is not None:
            self._worker.policy.tried(self._decision)
        if outcome.state is PrimitiveState.FAILED:
            self._motion_failed(outcome.reason, now_s)
            return
        self.watch.motion_done()
        if self._asked_s is None:
            self._wait_for_image(now_s, self.config.settle_time_s)
        else:  # it was asked for on the way
            self._set(Phase.THINKING)
            self._look_for_answer(now_s, ros_s)

    def _motion_failed(self, reason: str, now_s: float) -> None:
        self._end_or_wait(self.watch.motion_failed(reason), now_s, f"motion failed: {reason}")

    def _wait_for_image(self, now_s: float, settle_s: float, message: str = "") -> None:
        self._gate.stop()
        self._asked_s = self._answer = None
        self._wanted_after_s = now_s + settle_s
        self._set(Phase.WAITING, Result.NONE, message)

    def _give_up_motion(self, reason: str) -> None:
        if self._motion is not None:
            self._end_motion(self._motion.abort(reason))

    def _end_motion(self, outcome: PrimitiveStep) -> None:
        self._gate.stop()
        self._motion = None
        step = self._status.num_decisions - 1
        self._events += [PrimitiveEvent(self._status.episode, step, outcome), PlanEvent(())]

    def _halt(self, reason: str) -> None:
        self._give_up_motion(reason)
        self._gate.stop()
        self._silent_since_s = self._asked_s = self._decision = self._answer = None
        self._worker.drop()

    def _finish(self, result: Result, message: str) -> None:
        self._halt(message)
        self._instruction = None
        self._status = replace(self._status, waiting_share=self.times.waiting_share())
        duration_s, waiting_s = self.times.duration_s, self.times.waiting_s
        self._events.append(EpisodeEvent(self._status.episode, result, duration_s, waiting_s))
        self._rest(result, message)

    def _rest(self, result: Result = Result.NONE, message: str = "") -> None:
        """The phase without an episode; an episode that runs, or waits for the model, goes on."""
        if self._fault:
            self._set(Phase.FAULT, result, message or self._fault)
        elif self._emergency:
            self._set(Phase.EMERGENCY_STOP, result, message or self._emergency)
        elif self._instruction is not None:
            return
        elif self._worker.policy is None:
            self._set(Phase.LOADING, result, message)
        else:
            self._set(Phase.IDLE if self._is_active else Phase.INACTIVE, result, message)

    def _set(self, phase: Phase, result: Result = Result.NONE, message: str = "") -> None:
        self._status = replace(self._status, phase=phase, result=result, message=message)
