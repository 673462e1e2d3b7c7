# SPDX-License-Identifier: Apache-2.0
"""ROS shell of the simulator: an apartment with a robot, seen only through topics."""

from __future__ import annotations

import json
import math
import random
import sys
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rcl_interfaces.msg import SetParametersResult
from rclpy.parameter import Parameter
from sensor_msgs.msg import LaserScan
from std_msgs.msg import String
from std_srvs.srv import Trigger

from nvila_ros import ros_parameters
from nvila_ros.errors import NvilaError
from nvila_ros.nodes.simulated_frames import SimulatedFrames
from nvila_ros.nodes.simulated_robot import (
    SimulatedRobot,
    SimulatorConfig,
    floor_plan_row,
    give_memory_back,
    load_episode,
)
from nvila_ros.nodes.world_node import WorldNode
from nvila_ros.ros_main import SENSOR_QOS, run_node
from nvila_ros.sim.episodes import episode_from_seed
from nvila_ros.sim.world import CAMERA_FORWARD_M, LIDAR_RANGE_M, ROBOT_RADIUS_M

RANDOM_SEEDS = (900_000, 999_999)  # training never saw these


class SimulatorNode(WorldNode):
    """Steps the world by its own clock and publishes that as /clock.

    Physics, odometry and clock tick together; camera and lidar every few of these steps. Setting
    the parameter `seed` moves the robot to another apartment; time stands still meanwhile.
    """

    robot: SimulatedRobot

    def __init__(self, **node_options: Any) -> None:
        super().__init__("simulator", **node_options)
        self.settings = ros_parameters.declare(self, SimulatorConfig, editable=True)
        self.robot = SimulatedRobot(load_episode(self.settings), self.settings)
        self._wanted_seed: int | None = None
        self._open(self._on_timer)
        self._steps_per_scan = self._steps_per(self.settings.scan_rate_hz)
        self._scan_publisher = self.create_publisher(LaserScan, "scan", SENSOR_QOS)
        camera_m = CAMERA_FORWARD_M, self.robot.world.appearance.camera_height_m
        self._frames = SimulatedFrames(self, self.settings.frame_prefix, camera_m)
        self.create_service(Trigger, "~/random_episode", self._on_random_episode)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._tell_episode()

    def _tell_episode(self) -> None:
        episode = self.robot.episode
        row = {
            "seed": episode.seed,
            "instruction": episode.instruction,
            "start": list(episode.start),
            "goal": list(episode.goal),
            "geodesic_m": episode.geodesic_m,
            "plan": floor_plan_row(episode),
        }
        self._episode_publisher.publish(String(data=json.dumps(row)))
        self.get_logger().info(f"apartment {episode.seed}; try: {episode.instruction!r}")

    def _on_random_episode(self, _request: Trigger.Request, response: Trigger.Response) -> Any:
        seed = random.randint(*RANDOM_SEEDS)
        self.set_parameters([Parameter("seed", value=seed)])
        response.success, response.message = True, f"apartment {seed} is being built"
        return response

    def _on_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        """Only the seed may change; the next step builds its apartment."""
        try:
            self.settings = ros_parameters.changed(self.settings, parameters, only_live=True)
        except NvilaError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if any(parameter.name == "seed" for parameter in parameters):
            self._wanted_seed = self.settings.seed
        return SetParametersResult(successful=True)

    def _move(self, seed: int) -> None:
        """To the apartment of a seed; back to the one before where that has no episode."""
        episode = self.robot.episode
        self.robot.close()
        try:
            episode = episode_from_seed(seed)
        except NvilaError as error:
            self.get_logger().error(f"seed {seed}: {error}")
        self.robot = SimulatedRobot(episode, self.settings)
        give_memory_back()
        self._tell_episode()

    def _on_timer(self) -> None:
        """One step, in the apartment that was wished last."""
        if self._wanted_seed is not None:
            seed, self._wanted_seed = self._wanted_seed, None
            self._move(seed)
        odometry = self._step()
        stamp = odometry.header.stamp
        self._frames.publish(odometry)
        if self._num_steps % self._steps_per_scan == 0:
            self._scan_publisher.publish(self._scan(stamp))
        self._say_picture_when_due(stamp)

    def _scan(self, stamp: Time) -> LaserScan:
        step_rad = math.tau / self.settings.num_scan_rays
        message = LaserScan(
            angle_min=0.0,
            angle_max=math.tau - step_rad,
            angle_increment=step_rad,
            range_min=ROBOT_RADIUS_M / 2,
            range_max=LIDAR_RANGE_M,
            scan_time=1.0 / self.settings.scan_rate_hz,
        )
        message.header.stamp, message.header.frame_id = stamp, self._frame("lidar")
        message.ranges = self.robot.scan().astype(np.float32).tolist()
        return message


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `ros2 run nvila_ros simulator_node`."""
    return run_node(SimulatorNode, arguments)


if __name__ == "__main__":
    sys.exit(main())
