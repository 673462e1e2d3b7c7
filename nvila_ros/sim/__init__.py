# SPDX-License-Identifier: Apache-2.0
"""The embedded world: apartments from a seed, a robot, a camera, an oracle; knows no ROS and no model."""
