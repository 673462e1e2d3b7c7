# SPDX-License-Identifier: Apache-2.0
"""The embedded world: apartments from a seed, robot, camera, oracle; knows no ROS, no model."""
