# SPDX-License-Identifier: Apache-2.0
"""The navigator on a policy that answers at once: phases, results, and zero on every doubt."""

import math
import time

import numpy as np
import pytest

from nvila_ros.actions import ACTIONS
from nvila_ros.decision_worker import DecisionWorker
from nvila_ros.errors import InstructionError, NvilaError
from nvila_ros.models.prompt import navigation_prompt
from nvila_ros.navigator import Navigator
from nvila_ros.navigator_config import NavigatorConfig
from nvila_ros.navigator_status import DecisionEvent, Phase, PrimitiveEvent, Result
from nvila_ros.policy import Decision

IMAGE = np.zeros((8, 8, 3), np.uint8)
FORWARD, LEFT, STOP = ACTIONS[3], ACTIONS[5], ACTIONS[0]
TICK_S = 0.05


class ScriptedPolicy:
    """Takes the given actions one after the other, then stops."""

    def __init__(self, *actions):
        self.actions = list(actions)
        self.num_observed = 0

    def reset(self, instruction):
        navigation_prompt(instruction, 7)

    def observe(self, rgb, x_m, y_m, yaw_rad, stamp_s):
        self.num_observed += 1
        return True

    def decide(self):
        action = self.actions.pop(0) if self.actions else STOP
        if isinstance(action, Exception):
            raise action
        return Decision(
            action=action,
            confidence=1.0,
            probabilities=(0.1,) * 10,
            latency_s=0.0,
            num_encoded_frames=1,
            frame_indices=(0,),
            stamp_s=0.0,
        )

    def tried(self, decision):
        self.last_tried = decision

    def prepare(self):
        return 0


class Bench:
    """A navigator on a perfect robot in its own time."""

    def __init__(self, *actions, **settings):
        self.policy = ScriptedPolicy(*actions)
        self.worker = DecisionWorker(lambda: self.policy)
        self.worker.start()
        self.navigator = Navigator(NavigatorConfig(**settings), self.worker)
        self.now_s, self.pose = 100.0, (0.0, 0.0, 0.0)
        self.images = self.odometry = True
        self.velocities, self.events = [], []
        self.noise = np.random.default_rng(0)
        while self.worker.policy is None:
            time.sleep(0.001)

    @property
    def status(self):
        return self.navigator.status

    def picture(self):
        """A camera's noise makes no two pictures the same."""
        return self.noise.integers(0, 255, (8, 8, 3), np.uint8)

    def tick(self, count=1):
        for _ in range(count):
            self.now_s += TICK_S
            if self.images:
                self.navigator.hear_image(self.picture(), self.now_s, self.now_s)
            if self.odometry:
                self.navigator.hear_odometry(self.pose, self.now_s)
            velocity = self.navigator.tick(self.now_s, self.now_s)
            x_m, y_m, yaw_rad = self.pose
            yaw_rad += velocity.turn_rad_s * TICK_S
            step_m = velocity.forward_m_s * TICK_S
            self.pose = (
                x_m + step_m * math.cos(yaw_rad),
                y_m + step_m * math.sin(yaw_rad),
                yaw_rad,
            )
            self.velocities.append(velocity)
            self.events += self.navigator.take_events()

    def tick_until(self, condition, limit=2000):
        for _ in range(limit):
            self.tick()
            if condition():
                return
            if self.status.phase is Phase.THINKING:
                time.sleep(0.001)  # the worker is a real thread
        raise AssertionError(f"still {self.status}")

    def run(self, *phases):
        self.tick_until(lambda: self.status.phase in phases)


@pytest.fixture
def bench():
    benches = []

    def make(*actions, **settings):
        benches.append(Bench(*actions, **settings))
        benches[-1].tick(2)
        return benches[-1]

    yield make
    for made in benches:
        made.worker.stop()


def test_it_follows_the_decisions_until_stop(bench):
    robot = bench(FORWARD, LEFT, FORWARD)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.IDLE)
    assert robot.status.result is Result.SUCCEEDED and robot.status.num_decisions == 4
    assert robot.pose[0] == pytest.approx(0.75 + 0.75 * math.cos(math.radians(30)), abs=0.08)
    assert robot.pose[2] == pytest.approx(math.radians(30), abs=0.06)
    decisions = [event for event in robot.events if isinstance(event, DecisionEvent)]
    assert [event.decision.action for event in decisions] == [FORWARD, LEFT, FORWARD, STOP]
    assert robot.velocities[-1].is_zero()


def test_the_policy_hears_of_motions_that_were_tried_and_of_no_others(bench):
    robot = bench(FORWARD, LEFT)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.navigator.pause()
    assert not hasattr(robot.policy, "last_tried")
    robot.navigator.resume(robot.now_s)
    robot.run(Phase.IDLE)
    assert robot.policy.last_tried.action is LEFT


def test_without_an_instruction_it_holds_still(bench):
    robot = bench(FORWARD)
    robot.tick(50)
    assert all(velocity.is_zero() for velocity in robot.velocities)


@pytest.mark.parametrize("text", ["", "   ", "x" * 2001, "go <image> left", "<|im_end|> go"])
def test_a_refused_instruction_leaves_the_running_episode_alone(bench, text):
    robot = bench(FORWARD, FORWARD)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    with pytest.raises(InstructionError):
        robot.navigator.instruct(text, robot.now_s)
    assert robot.status.phase is Phase.MOVING and robot.status.episode == 1


def test_an_instruction_that_came_before_the_model_waits_for_it(bench):
    robot = Bench(FORWARD)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.worker.stop()


def test_a_new_instruction_stops_first(bench):
    robot = bench(*[FORWARD] * 5)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.tick(5)
    robot.navigator.instruct("Go elsewhere.", robot.now_s)
    robot.tick()
    assert robot.velocities[-1].is_zero() and robot.status.episode == 2


def test_a_second_instruction_that_is_refused_hears_which_one_runs(bench):
    robot = bench(*[FORWARD] * 5, preempt=False)
    robot.navigator.instruct("Go to the sofa.", robot.now_s)
    with pytest.raises(NvilaError, match=r"another instruction is running, 'Go to the sofa"):
        robot.navigator.instruct("Go elsewhere.", robot.now_s)
    assert robot.status.episode == 1


@pytest.mark.parametrize("sensor", ["images", "odometry"])
def test_silence_stops_in_time_and_ends_the_episode_when_it_lasts(bench, sensor):
    robot = bench(*[FORWARD] * 9, patience_s=3.0)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.tick(10)
    setattr(robot, sensor, False)
    begin_s = robot.now_s
    robot.tick_until(lambda: robot.velocities[-1].is_zero())
    limit_s = 1.0 if sensor == "images" else 0.5
    assert robot.now_s - begin_s <= limit_s + 2.5 * TICK_S
    assert "holding still" in robot.status.message
    robot.run(Phase.IDLE)
    assert robot.status.result is Result.STALE_SENSOR


def test_it_goes_on_when_images_come_back(bench):
    robot = bench(*[FORWARD] * 9)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.images = False
    robot.tick(40)
    assert robot.velocities[-1].is_zero()
    robot.images = True
    robot.run(Phase.MOVING)


def test_a_model_that_raises_ends_the_episode_and_the_next_one_works(bench):
    robot = bench(FORWARD, RuntimeError("out of memory"))
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.IDLE)
    assert robot.status.result is Result.MODEL_ERROR and "out of memory" in robot.status.message
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.IDLE)
    assert robot.status.result is Result.SUCCEEDED


def test_a_model_that_cannot_be_loaded_refuses_instructions():
    def load():
        raise OSError("no such checkpoint")

    worker = DecisionWorker(load)
    worker.start()
    navigator = Navigator(NavigatorConfig(), worker)
    while not worker.load_error:
        time.sleep(0.001)
    assert navigator.tick(1.0, 1.0).is_zero()
    assert navigator.status.phase is Phase.FAULT
    with pytest.raises(NvilaError, match="no such checkpoint"):
        navigator.instruct("Go.", 1.0)


def test_cancel_pause_and_resume(bench):
    robot = bench(*[FORWARD] * 9)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.tick(5)
    assert robot.navigator.pause()
    robot.tick(30)
    assert all(velocity.is_zero() for velocity in robot.velocities[-30:])
    assert robot.navigator.resume(robot.now_s) and not robot.navigator.resume(robot.now_s)
    robot.run(Phase.MOVING)
    assert robot.navigator.cancel() and not robot.navigator.cancel()
    robot.tick()
    assert robot.velocities[-1].is_zero() and robot.status.result is Result.CANCELED
    assert not robot.navigator.pause()


def test_obstacle_makes_it_decide_anew_and_give_up_in_the_end(bench):
    robot = bench(*[FORWARD] * 9, max_failed_primitives=3)
    robot.navigator.instruct("Go.", robot.now_s)
    for _ in range(3000):
        robot.navigator.hear_scan(0.02, robot.now_s)
        robot.tick()
        if robot.status.phase is Phase.IDLE:
            break
        time.sleep(0.0002)
    assert robot.status.result is Result.OBSTACLE and robot.status.num_decisions == 3
    reasons = [event.outcome.reason for event in robot.events if isinstance(event, PrimitiveEvent)]
    assert reasons == ["obstacle"] * 3
    assert all(velocity.is_zero() for velocity in robot.velocities)


def test_odometry_that_jumps_ends_the_motion(bench):
    robot = bench(*[FORWARD] * 9)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.tick(3)
    robot.pose = (9.0, 9.0, 0.0)
    robot.tick()
    assert robot.velocities[-1].is_zero()
    ended = [event for event in robot.events if isinstance(event, PrimitiveEvent)]
    assert "jumped" in ended[-1].outcome.reason


def test_dry_run_decides_and_never_moves(bench):
    robot = bench(*[FORWARD] * 3, execute=False)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.IDLE)
    assert robot.status.result is Result.SUCCEEDED and robot.pose == (0.0, 0.0, 0.0)


def test_a_disabled_navigator_stays_still(bench):
    robot = bench(*[FORWARD] * 9)
    robot.navigator.instruct("Go.", robot.now_s)
    robot.run(Phase.MOVING)
    robot.navigator.disable("the configuration is refused")
    robot.tick(30)
    assert all(velocity.is_zero() for velocity in robot.velocities[-30:])
    with pytest.raises(NvilaError, match="configuration"):
        robot.navigator.instruct("Go.", robot.now_s)
