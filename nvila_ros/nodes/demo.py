# SPDX-License-Identifier: Apache-2.0
"""The demo: simulator and navigator as two processes over DDS, a sentence said, the drive shown."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from nvila_ros import __version__
from nvila_ros.actions import SENTENCE_OPENING
from nvila_ros.config import EvaluationConfig
from nvila_ros.errors import NvilaError, SystemLibraryError
from nvila_ros.evaluation import report
from nvila_ros.evaluation.drive_record import DriveRecord, HeardDecision, judge, latency_summary
from nvila_ros.evaluation.floor_plan import draw_floor_plan
from nvila_ros.evaluation.metrics import EpisodeMetrics
from nvila_ros.evaluation.typed_goal import with_instruction
from nvila_ros.evaluation.video import write_drive_video
from nvila_ros.models.config_files import load_config
from nvila_ros.models.prompt import clean_instruction
from nvila_ros.nodes import demo_dashboard
from nvila_ros.nodes.child_processes import ChildProcesses, PeakMemory
from nvila_ros.nodes.demo_dashboard import DemoDashboard
from nvila_ros.ros_environment import process_environment
from nvila_ros.sim.episodes import Episode, episode_from_seed

DEFAULT_SEED = 900_000  # apartments from here on are kept for evaluation
START_TIMEOUT_S = 60.0  # of both processes, the model included
STOP_TIMEOUT_S = 3.0  # between cancel and standing still
REST_TIMEOUT_S = 0.6  # after the end of the episode, to hear that the robot stands
CAMERA_RATE_HZ = 10
NUM_DOMAINS = 90  # ROS domain ids that are safe to take at random
DISTRIBUTIONS = ("torch", "mujoco", "numpy", "ros-rclpy", "av")


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
    _require_ros()
    console = Console(highlight=False, soft_wrap=True)
    config = load_config(settings.model_path)
    episode, goal_source = _choose_episode(settings)
    # Without this rclpy of this process would lose images and look for peers for seconds.
    os.environ.update(_environment())
    console.print(f'[bold]"{episode.instruction}"[/bold]')
    console.print(
        f"apartment {episode.seed}, {episode.geodesic_m:.1f} m to the goal, "
        f"ROS domain {os.environ['ROS_DOMAIN_ID']}"
    )
    if not settings.dashboard:
        console.print(
            f"watch it in a browser: ROS_DOMAIN_ID={os.environ['ROS_DOMAIN_ID']} "
            f"{Path(sys.executable).parent / 'nvila'} dashboard"
        )
    begin_s = time.monotonic()
    settings.output.mkdir(parents=True, exist_ok=True)
    log_folder = settings.output / "log"
    with ChildProcesses(os.environ, log_folder) as children, PeakMemory(children) as memory:
        _start_nodes(children, settings)
        dashboard = DemoDashboard(children, console)
        if settings.dashboard:
            dashboard.start()
        record = _drive(children, episode, config.num_video_frames, settings, console, dashboard)
    drive_s = time.monotonic() - begin_s
    metrics = judge(record, episode, EvaluationConfig())
    codec = write_drive_video(settings.output / "episode.mp4", record, episode, CAMERA_RATE_HZ)
    line = _result_line(metrics, record)
    plan = draw_floor_plan(episode, record.path_m(), result=line)
    plan.save(settings.output / "trajectory.png")
    result = {
        "success": metrics.success,
        "seed": episode.seed,
        "instruction": episode.instruction,
        "goal_source": goal_source,
        "navigator_result": record.result,
        "navigator_message": record.message,
        "metrics": report.episode_row(metrics),
        "decision_latency": latency_summary(record),
        "stands_still": _stands_still(record),
        "peak_memory_bytes": memory.peak_bytes,
        "drive_wall_s": drive_s,
        "total_wall_s": time.monotonic() - begin_s,
        "video_codec": codec,
        "model": str(settings.model_path),
        "versions": _versions(),
        "decisions": [
            {"sentence": d.sentence, "confidence": d.confidence, "latency_s": d.latency_s}
            for d in record.decisions
        ],
    }
    (settings.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"[bold]{line}[/bold]")
    for name in ("episode.mp4", "trajectory.png", "result.json"):
        console.print(f"  {settings.output / name}")
    return result


def _require_ros() -> None:
    if importlib.util.find_spec("rclpy") is None:
        raise SystemLibraryError(
            "rclpy, ROS 2's Python library, was not found; run `make setup` for pip's wheels, "
            "or source a ROS 2 installation: . /opt/ros/jazzy/setup.bash"
        )


def _choose_episode(settings: DemoSettings) -> tuple[Episode, str]:
    if settings.instruction is None:
        return episode_from_seed(settings.seed), "episode"
    instruction = clean_instruction(settings.instruction)
    typed, was_named = with_instruction(episode_from_seed(settings.seed), instruction)
    return typed, "named in the instruction" if was_named else "episode"


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


def _stands_still(record: DriveRecord) -> bool:
    """Whether the last command was zero and odometry agreed."""
    is_slow = abs(record.final_speed_m_s) < 0.02 and abs(record.final_turn_rad_s) < 0.05
    return is_slow and record.last_command == (0.0, 0.0)


def _result_line(metrics: EpisodeMetrics, record: DriveRecord) -> str:
    rate = latency_summary(record)["decisions_per_s"]
    outcome = "Success" if metrics.success else f"No success ({record.result})"
    speed = "" if rate is None else f", {rate:.1f} decisions per second"
    return (
        f"{outcome}: {metrics.navigation_error_m:.2f} m from the goal, SPL {metrics.spl:.2f}, "
        f"{metrics.num_decisions} decisions{speed}"
    )


def _versions() -> dict[str, str]:
    versions = {"nvila_ros": __version__, "python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not from pip"
    return versions
