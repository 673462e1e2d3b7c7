# SPDX-License-Identifier: Apache-2.0
"""Recordings: MCAP files of drives, written on the robot, read anywhere, without ROS."""
