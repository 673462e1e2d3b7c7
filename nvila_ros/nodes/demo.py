# SPDX-License-Identifier: Apache-2.0
"""The demo: simulator and navigator as two processes over DDS, a sentence said, the drive shown."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nvila_ros.actions import SENTENCE_OPENING
from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import NvilaError
from nvila_ros.evaluation.drive_record import DriveRecord, HeardDecision, judge
from nvila_ros.evaluation.typed_goal import goal_name, goal_notes, with_instruction
from nvila_ros.models.config_files import load_config
from nvila_ros.models.prompt import clean_instruction
from nvila_ros.nodes import demo_dashboard
from nvila_ros.nodes.child_processes import ChildProcesses, PeakMemory
from nvila_ros.nodes.demo_dashboard import DemoDashboard
from nvila_ros.nodes.demo_result import FILES, FinishedDrive, result_line, write_result
from nvila_ros.ros_environment import process_environment, require_rclpy
from nvila_ros.sim.episodes import Episode, episode_from_seed

DEFAULT_SEED = 900_000  # apartments from here on are kept for evaluation
START_TIMEOUT_S = 60.0  # of both processes, the model included
STOP_TIMEOUT_S = 3.0  # between cancel and standing still
REST_TIMEOUT_S = 0.6  # after the end of the episode, to hear that the robot stands
CAMERA_RATE_HZ = 10
NUM_DOMAINS = 90  # ROS domain ids that are safe to take at random
EPISODE_GOAL, TYPED_GOAL = "episode", "named in the instruction"  # goal_source of result.json


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What to drive and where to write."""

    instruction: str | None
    seed: int
    model_path: Path
    output: Path
    timeout_s: float
    dashboard: bool = True


def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Drives one episode and writes video, floor plan and result; returns the result."""
    require_rclpy()
    console = Console(highlight=False, soft_wrap=True)
    config = load_config(settings.model_path)
    episode, goal_source = _choose_episode(settings)
    # Without this rclpy of this process would lose images and look for peers for seconds.
    os.environ.update(_environment())
    _announce(console, episode, goal_source, settings)
    begin_s = time.monotonic()
    settings.output.mkdir(parents=True, exist_ok=True)
    log_folder = settings.output / "log"
    with ChildProcesses(os.environ, log_folder) as children, PeakMemory(children) as memory:
        _start_nodes(children, settings)
        dashboard = DemoDashboard(children, console)
        if settings.dashboard:
            dashboard.start()
        record = _drive(children, episode, config.num_video_frames, settings, console, dashboard)
    end_s = time.monotonic()
    drive = FinishedDrive(
        episode=episode,
        goal_source=goal_source,
        record=record,
        metrics=judge(record, episode, EvaluationConfig()),
        model_path=settings.model_path,
        begin_s=begin_s,
        end_s=end_s,
        peak_memory_bytes=memory.peak_bytes,
    )
    result = write_result(drive, settings.output, CAMERA_RATE_HZ)
    console.print(result_line(drive.metrics, record), style="bold")
    for name in FILES:
        console.print(f"  {settings.output / name}", markup=False)
    return result


def _announce(console: Console, episode: Episode, goal_source: str, settings: DemoSettings) -> None:
    """What will be driven, what it is judged by, and where to watch."""
    console.print(f'"{episode.instruction}"', style="bold", markup=False)
    console.print(
        f"apartment {episode.seed}, {episode.geodesic_m:.1f} m to the {goal_name(episode)}, "
        f"ROS domain {os.environ['ROS_DOMAIN_ID']}"
    )
    if settings.instruction is not None:
        for line in goal_notes(episode, was_named=goal_source != EPISODE_GOAL):
            console.print(line, style="yellow", markup=False)
    if not settings.dashboard:
        console.print(
            f"watch it in a browser: ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']} "
            f"{Path(sys.executable).parent / 'nvila'} dashboard",
            markup=False,
        )


def _choose_episode(settings: DemoSettings) -> tuple[Episode, str]:
    if settings.instruction is None:
        return episode_from_seed(settings.seed), EPISODE_GOAL
    instruction = clean_instruction(settings.instruction)
    typed, was_named = with_instruction(episode_from_seed(settings.seed), instruction)
    return typed, TYPED_GOAL if was_named else EPISODE_GOAL


def _environment() -> dict[str, str]:
    """For the two nodes and this process: one domain of their own on this machine only."""
    environment = process_environment()
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % NUM_DOMAINS))
    environment.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    environment.setdefault("LP_NUM_THREADS", "0")  # Mesa draws in the calling thread
    # Two processes share few cores: threads that spin for each other cost more than they bring.
    environment.setdefault("OMP_NUM_THREADS", "1")
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment


def _start_nodes(children: ChildProcesses, settings: DemoSettings) -> None:
    simulator = [f"seed:={settings.seed}", f"camera_rate_hz:={CAMERA_RATE_HZ:.1f}"]
    navigator = [f"model_path:={settings.model_path}", "use_sim_time:=true"]
    for name, parameters in (("simulator", simulator), ("navigator", navigator)):
        arguments = [argument for parameter in parameters for argument in ("-p", parameter)]
        children.start(name, ["-m", f"nvila_ros.nodes.{name}_node", "--ros-args", *arguments])


def _drive(
    children: ChildProcesses,
    episode: Episode,
    num_frames: int,
    settings: DemoSettings,
    console: Console,
    dashboard: DemoDashboard,
) -> DriveRecord:
    """Says the instruction when all is ready and listens until the episode has ended."""
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from nvila_ros.nodes.demo_listener import DemoListener

    def show(decision: HeardDecision) -> None:
        number = len(listener.record.decisions)
        words = decision.sentence.removeprefix(SENTENCE_OPENING).strip(" .")
        console.print(
            f"{number:3d}  {words:<22}{decision.confidence:5.0%} sure"
            f"{1e3 * decision.latency_s:7.0f} ms{decision.goal_distance_m:7.1f} m to go"
        )

    # Ctrl-C must reach us as KeyboardInterrupt, so that the nodes are ended in order.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    listener = DemoListener(episode, num_frames, show)
    try:

        def spin_until(is_done: Any, timeout_s: float) -> bool:
            end_s = time.monotonic() + timeout_s
            while not is_done() and time.monotonic() < end_s:
                rclpy.spin_once(listener, timeout_sec=0.1)
                _check_alive(children)
                dashboard.look()
            return bool(is_done())

        if not spin_until(lambda: listener.ready or listener.finished, START_TIMEOUT_S):
            raise NvilaError(
                f"simulator and navigator were not ready within {START_TIMEOUT_S:.0f} s; "
                f"see {children.log_path('navigator')}:\n{children.last_lines('navigator')}"
            )
        if listener.finished:  # the navigator is in its fault state
            raise NvilaError(f"the navigator cannot drive: {listener.record.message}")
        listener.say(episode.instruction)
        if not spin_until(lambda: listener.finished, settings.timeout_s):
            listener.cancel()
            spin_until(lambda: listener.finished, STOP_TIMEOUT_S)
            listener.record.result = "TIMEOUT"
            listener.record.message = f"no stop within {settings.timeout_s:.0f} s"
        spin_until(lambda: False, REST_TIMEOUT_S)
        return listener.record
    finally:
        listener.destroy_node()
        rclpy.try_shutdown()


def _check_alive(children: ChildProcesses) -> None:
    for name in set(children.ended()) - {demo_dashboard.NAME}:
        raise NvilaError(
            f"the {name} ended by itself; see {children.log_path(name)}:\n"
            f"{children.last_lines(name)}"
        )
